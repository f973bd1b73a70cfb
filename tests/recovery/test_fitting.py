import pytest
import torch

from amc.recovery.fitting import ALL, FITTED, SAMPLE, Solver, Sums, choose, rescaled

DRAW = torch.Generator().manual_seed(0)
IMAGES, PER_IMAGE, COLUMNS, OUTPUTS = 40, 3, 6, 2
ROWS = IMAGES * PER_IMAGE
FIT = slice(0, 30 * PER_IMAGE)  # one image in four judges
JUDGE = slice(30 * PER_IMAGE, None)


def rows_of(columns=COLUMNS, rows=ROWS):
    return torch.randn(1, rows, columns, generator=DRAW) + 2


def sums_of(x, y, images=IMAGES):
    return Sums([x.clone()], [y], [images])


@pytest.mark.parametrize(("part", "rows"), [(FITTED, FIT), (ALL, slice(None))])
def test_fit_is_least_squares_over_its_images(part, rows):
    x, noise = rows_of(), torch.randn(1, ROWS, OUTPUTS, generator=DRAW)
    y = x @ torch.randn(COLUMNS, OUTPUTS, generator=DRAW) + noise
    sums, now = sums_of(x, y), torch.zeros(1, OUTPUTS, COLUMNS, dtype=torch.float64)
    for centred in (True, False):
        weight = Solver(now, sums.gram(centred, part), 1e-9, "x")(sums.cross(centred, part))
        design, target = x[0, rows].double(), y[0, rows].double()
        if centred:
            design, target = design - design.mean(0), target - target.mean(0)
        expected = torch.linalg.lstsq(design, target).solution.T
        torch.testing.assert_close(weight[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
def test_judged_error_is_that_on_the_other_images(centred):
    x, y = rows_of(), torch.randn(1, ROWS, OUTPUTS, generator=DRAW) + 1
    weight = torch.randn(1, OUTPUTS, COLUMNS, generator=DRAW, dtype=torch.float64)
    found = sums_of(x, y).judged([weight], centred)[0][0, 0]
    given = x[0].double() @ weight[0].T
    if centred:
        given = given + (y[0, FIT].double() - given[FIT]).mean(0)
    expected = (y[0, JUDGE] - given[JUDGE]).square().mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def chosen(x, y, now, images=IMAGES):
    importance = torch.ones(now.shape[:2], dtype=torch.float64)
    return choose(sums_of(x, y, images), now, True, importance, lambda weight: weight, "x")


def test_layer_that_is_right_keeps_its_weight():
    x, now = rows_of(), torch.randn(1, OUTPUTS, COLUMNS, generator=DRAW).double()
    y = (x.double() @ now.transpose(1, 2)).float()
    y = y + 0.5 * torch.randn(y.shape, generator=DRAW)  # which no weight explains
    choice = chosen(x[:, :24], y[:, :24], now, images=8)
    assert not choice.refit.all()
    # Another weight is needed where the present one is nothing like it.
    assert chosen(x, y, now.flip(2)).refit.all()


def test_factor_alone_is_taken_where_it_is_all_that_lacks():
    x, now = rows_of(), torch.randn(1, OUTPUTS, COLUMNS, generator=DRAW).double()
    y = (x.double() @ (3 * now).transpose(1, 2)).float()
    y = y + torch.randn(y.shape, generator=DRAW)
    sums = sums_of(x, y)
    found = rescaled(now, sums.gram(True) @ now.transpose(1, 2), sums.cross(True)) / now
    torch.testing.assert_close(found, torch.full_like(found, 3), rtol=0.1, atol=0)
    assert chosen(x[:, :12], y[:, :12], now, images=4).rescale.any()


def test_fewer_rows_are_pulled_harder_to_the_weight_that_is_there():
    columns, true = 48, torch.randn(1, OUTPUTS, 48, generator=DRAW).double()
    now = true + 0.2 * torch.randn(true.shape, generator=DRAW)
    ridges = []
    for images in (16, 2000):
        x = torch.randn(1, images * PER_IMAGE, columns, generator=DRAW)
        y = (x.double() @ true.transpose(1, 2)).float()
        y = y + 3 * torch.randn(y.shape, generator=DRAW)
        ridges.append(chosen(x, y, now, images).ridge)
    assert ridges[0] > ridges[1]


def test_wide_layer_takes_the_ridge_that_its_sample_of_outputs_asks_for():
    """What is chosen for every output is what all of them would have chosen at this ridge."""
    columns, outputs = 48, 2 * SAMPLE
    true = torch.randn(1, outputs, columns, generator=DRAW).double()
    now = true + 0.2 * torch.randn(true.shape, generator=DRAW)
    x = torch.randn(1, 400 * PER_IMAGE, columns, generator=DRAW)
    y = (x.double() @ true.transpose(1, 2)).float()
    y = y + 3 * torch.randn(y.shape, generator=DRAW)
    sampled = chosen(x, y, now, 400)
    importance = torch.ones(now.shape[:2], dtype=torch.float64)
    alone = [sums_of(x, y, 400), now, True, importance, lambda weight: weight, "x"]
    one_ridge = choose(*alone, (sampled.ridge,), alone=False)
    torch.testing.assert_close(sampled.refit, one_ridge.refit)
    torch.testing.assert_close(sampled.rescale, one_ridge.rescale)
    half = [sums_of(x, y[..., ::2], 400), now[:, ::2], True, importance[:, ::2], *alone[4:]]
    assert choose(*half, alone=False).ridge == sampled.ridge


def test_outputs_that_are_right_need_no_repair():
    x, now = rows_of(), torch.randn(1, OUTPUTS, COLUMNS, generator=DRAW).double()
    y = (x.double() @ now.transpose(1, 2)).float()
    y[0, :, 1] += torch.randn(ROWS, generator=DRAW)
    assert chosen(x, y, now).needed.tolist() == [[False, True]]


def test_single_image_is_halved():
    x, y = rows_of(), torch.randn(1, ROWS, OUTPUTS, generator=DRAW)
    first = x[0, : ROWS // 2].double()
    torch.testing.assert_close(
        sums_of(x, y, 1).gram(False, FITTED)[0], first.T @ first / len(first), rtol=1e-4, atol=1e-4
    )


def test_values_whose_products_would_be_subnormal_count_as_zero():
    x, y = rows_of(), rows_of(columns=OUTPUTS)
    x[:, :, 0], y[:, :, 0] = 0.0, 0.0
    x[:, ::2, 0], y[:, ::2, 0] = 2e-19, 2e-19  # from their mean, 1e-19: its square is subnormal
    sums = sums_of(x, y)
    gram, cross = sums.gram(centred=True), sums.cross(centred=True)
    for part in (gram[0, 0], cross[0, 0], cross[0, :, 0]):
        assert not part.any()
    assert (gram[0, 1:, 1:].diagonal() > 0.5).all()
