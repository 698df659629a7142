import h5py
import numpy as np
import pytest
from astropy.table import Table
from scipy.stats import kstest

from skylib import Embeddings
from skylib.redshift import RedshiftPDF, conformal, redshift_pdf


@pytest.fixture(scope="module")
def simulated():
    """Redshifts with a known scatter in ln(1 + z), which grows with the third feature."""
    rng = np.random.default_rng(0)
    n = 16_000
    x = rng.normal(size=(n, 3))
    noise = 0.05 * np.exp(0.3 * x[:, 2])
    z = np.expm1(0.6 + 0.1 * x[:, 0] - 0.05 * x[:, 1] + noise * rng.normal(size=n))
    split = np.repeat([0, 1, 2], [4000, 4000, 8000])
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


def test_calibration_mends_a_head_that_is_too_sure(simulated):
    """Widths half of what they should be: coverage near 38 % before, 68 % after."""
    rng = np.random.default_rng(1)
    edges, truth = np.linspace(-5, 5, 401), rng.normal(size=6000)
    centre = (edges[1:] + edges[:-1]) / 2
    density = np.repeat(np.exp(-0.5 * (centre / 0.5) ** 2)[None], 6000, axis=0)
    density /= (density * np.diff(edges)).sum(axis=1, keepdims=True)
    sure = RedshiftPDF(edges=edges, density=density, truth=truth, rows=np.arange(6000))
    before = sure.metrics()[0]["coverage_68"]
    first, second = (RedshiftPDF(**{**vars(sure), "density": density[p], "truth": truth[p], "rows": p})
                     for p in (np.arange(3000), np.arange(3000, 6000)))  # fmt: skip
    after = conformal(second, first.pit()).metrics()[0]["coverage_68"]
    assert before == pytest.approx(0.38, abs=0.03)
    assert after == pytest.approx(0.68, abs=0.03)


def test_crps_and_pit_by_hand():
    """A uniform p(z) between 0 and 1 with the truth at its middle: CRPS 1/12; at its edge 1/3; PIT is the place itself."""
    uniform = RedshiftPDF(edges=np.array([0.0, 0.5, 1.0]), density=np.ones((3, 2)), truth=np.array([0.5, 0.0, 0.3]), rows=np.arange(3))  # fmt: skip
    np.testing.assert_allclose(uniform.crps(), [1 / 12, 1 / 3, (0.3**3 + 0.7**3) / 3])
    np.testing.assert_allclose(uniform.pit(), [0.5, 0, 0.3])
    np.testing.assert_allclose(uniform.quantile(0.25), 0.25)


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
