"""Damaged and hostile files of every kind that amc reads, made by code."""
