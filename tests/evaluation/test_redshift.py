import h5py
import numpy as np
import pytest
from astropy.table import Table
from scipy.stats import kstest

from skylib import Embeddings, redshift_pdf
from skylib.data.splits import sky_halves
from skylib.evaluation.redshift import RedshiftPDF, conformal


@pytest.fixture(scope="module")
def simulated():
    """Redshifts with a known scatter in ln(1 + z), which grows with the third feature."""
    rng = np.random.default_rng(0)
    n = 20_000
    x = rng.normal(size=(n, 3))
    noise = 0.05 * np.exp(0.3 * x[:, 2])
    z = np.expm1(0.6 + 0.1 * x[:, 0] - 0.05 * x[:, 1] + noise * rng.normal(size=n))
    split = np.repeat([0, 1, 2], [4000, 8000, 8000])
    return Embeddings(x, ra=np.zeros(n), dec=np.zeros(n), columns={"z_spec": z, "split": split})


@pytest.fixture(scope="module")
def pdf(simulated):
    return redshift_pdf(simulated, "z_spec", split="split", weight_decays=(1e-3, 1e-1))


def test_intervals_cover_what_they_say(pdf):
    metrics, intervals = pdf.metrics()
    assert metrics["n"] == 8000
    assert metrics["coverage_68"] == pytest.approx(0.68, abs=0.02)
    assert metrics["coverage_95"] == pytest.approx(0.95, abs=0.01)
    assert metrics["pit_mean"] == pytest.approx(0.5, abs=0.015)
    assert metrics["pit_outliers"] < 0.005
    assert kstest(pdf.pit(), "uniform").statistic < 0.03
    assert intervals["coverage_68"][0] < metrics["coverage_68"] < intervals["coverage_68"][1]
    np.testing.assert_allclose((pdf.density * np.diff(pdf.edges)).sum(axis=1), 1)


def test_widths_follow_the_scatter(simulated, pdf):
    width = pdf.quantile(0.84) - pdf.quantile(0.16)
    noisy = simulated.vectors[pdf.rows, 2]
    assert np.median(width[noisy > 1]) > 1.4 * np.median(width[noisy < -1])


def test_what_calibrates_has_chosen_nothing(simulated):
    """Redshifts of the half that calibrates change p(z), but neither weight decay nor step; those of the other do."""
    few = simulated[np.r_[:300, 4000:4400, 12_000:12_200]]
    ra = np.where(few.column("split") == 1, 10.0 * (np.arange(900) % 6), 0.0)
    few = Embeddings(few.vectors, ra=ra, dec=np.zeros(900), columns=few.columns)
    validation = np.flatnonzero(few.column("split") == 1)
    half, by = sky_halves(ra[validation], np.zeros(400), seed=1)
    assert by == "sky cells"
    assert all(len(set(half[ra[validation] == place])) == 1 for place in range(0, 60, 10))

    def chosen(changed):
        z = few.column("z_spec").copy()
        z[changed] += 1
        pdf = redshift_pdf(few, z, split="split", weight_decays=(1e-2,), n_bins=50, seed=1)
        return pdf.settings, pdf.density

    plain, density = chosen([])
    assert plain["halves"] == "sky cells"
    assert (plain["n_validation"], plain["n_calibration"]) == ((half == 0).sum(), (half == 1).sum())
    calibrated, other = chosen(validation[half == 1])
    assert calibrated == plain
    assert not np.allclose(other, density)
    assert chosen(validation[half == 0])[0]["validation_nll"] > plain["validation_nll"]
    raw = redshift_pdf(few, "z_spec", split="split", weight_decays=(1e-2,), calibrate=False)
    assert (raw.settings["n_validation"], raw.settings["n_calibration"]) == (400, 0)


def test_what_cannot_be_predicted(simulated):
    few = simulated[np.r_[:50, 4000:4050, 12_000:12_050]]
    low = few.column("z_spec").copy()
    low[-1] = -2.5
    with pytest.raises(ValueError, match=r"redshifts down to -2\.500: must lie above -1"):
        redshift_pdf(few, low, split="split")
    with pytest.raises(ValueError, match="1 validation object: must be two at least"):
        redshift_pdf(simulated[np.r_[:50, 4000:4001, 12_000:12_050]], "z_spec", split="split")


def test_calibration_mends_a_head_that_is_too_sure(simulated):
    """Widths half of what they should be: coverage near 38 % before, 68 % after."""
    rng = np.random.default_rng(1)
    edges, truth = np.linspace(-5, 5, 401), rng.normal(size=6000)
    centre = (edges[1:] + edges[:-1]) / 2
    density = np.repeat(np.exp(-0.5 * (centre / 0.5) ** 2)[None], 6000, axis=0)
    density /= (density * np.diff(edges)).sum(axis=1, keepdims=True)
    sure = RedshiftPDF(edges=edges, density=density, truth=truth, rows=np.arange(6000))
    before = sure.metrics()[0]["coverage_68"]
    first, second = (
        RedshiftPDF(**{**vars(sure), "density": density[p], "truth": truth[p], "rows": p})
        for p in (np.arange(3000), np.arange(3000, 6000))
    )
    after = conformal(second, first.pit()).metrics()[0]["coverage_68"]
    assert before == pytest.approx(0.38, abs=0.03)
    assert after == pytest.approx(0.68, abs=0.03)


def test_crps_and_pit_by_hand():
    """A uniform p(z) between 0 and 1 with the truth at its middle: CRPS 1/12; at its edge 1/3, and one more for each
    unit of z that the truth lies beyond; PIT is the place itself.
    """
    uniform = RedshiftPDF(
        edges=np.array([0.0, 0.5, 1.0]), density=np.ones((3, 2)), truth=np.array([0.5, 0.0, 0.3]), rows=np.arange(3)
    )
    np.testing.assert_allclose(uniform.crps(), [1 / 12, 1 / 3, (0.3**3 + 0.7**3) / 3])
    np.testing.assert_allclose(uniform.pit(), [0.5, 0, 0.3])
    np.testing.assert_allclose(uniform.quantile(0.25), 0.25)
    beyond = RedshiftPDF(edges=uniform.edges, density=np.ones((2, 2)), truth=np.array([2.0, -1.0]), rows=np.arange(2))
    np.testing.assert_allclose(beyond.crps(), 4 / 3)
    np.testing.assert_allclose(beyond.pit(), [1, 0])


def test_tables_are_laid_out_as_qp_reads_them(pdf, tmp_path):
    pdf.save(tmp_path / "pz.hdf5", columns={"mag_i": np.zeros(8000)})
    with h5py.File(tmp_path / "pz.hdf5") as file:
        assert file["meta/pdf_name"][0] == b"hist"
        assert file["meta/pdf_version"][0] == 0
        assert file["meta/bins"].shape == (1, 201)
        assert file["data/pdfs"].shape == (8000, 200)
        np.testing.assert_allclose(file["ancil/z_spec"][:], pdf.truth)
        assert "mag_i" in file["ancil"]
    pdf.save(tmp_path / "pz.fits")
    assert Table.read(tmp_path / "pz.fits", hdu="meta")["bins"].shape == (1, 201)
    np.testing.assert_allclose(Table.read(tmp_path / "pz.fits", hdu="data")["pdfs"], pdf.density)
    with pytest.raises(ValueError, match="must end in"):
        pdf.save(tmp_path / "pz.csv")
