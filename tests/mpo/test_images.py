"""Decoding untrusted images: what comes out as RGB, and what is refused before it costs anything."""

from __future__ import annotations

import os
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import MAX_PIXELS, image_sha256, load_image, png_bytes, resolve_inside

ROOT = Path(__file__).resolve().parents[2]
ORIENTATION = 0x0112
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def bomb(path: Path, side: int) -> Path:
    """A valid grey PNG of side x side black pixels, a few kB on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


# ---- what comes out ----


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (2, 1), (0, 0, 0, 0)),
        Image.new("LA", (2, 1), (0, 0)),
    ],
)
def test_transparent_becomes_white(tmp_path: Path, image: Image.Image) -> None:
    for given in (image, saved(tmp_path / "x.png", image)):
        assert load_image(given).getpixel((1, 0)) == (255, 255, 255)


def test_half_transparent_black_becomes_mid_grey() -> None:
    """255 · (1 − 128/255) = 127."""
    assert load_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


def test_palette_transparency_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    loaded = load_image(saved(tmp_path / "x.gif", image, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    """40000 · 255 / 65535 = 155.6 → 156; Pillow's own conversion would clip to 255."""
    values = np.array([[0, 40000, 65535]], dtype=np.uint16)
    loaded = load_image(saved(tmp_path / "x.png", Image.fromarray(values)))
    assert loaded.mode == "RGB"
    assert np.asarray(loaded)[0, :, 0].tolist() == [0, 156, 255]
    assert np.ptp(np.asarray(loaded), axis=2).max() == 0


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """Orientation 6: the stored left edge is the upright top edge, so 4x2 becomes 2x4 with red on top."""
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, :2, 0] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    loaded = load_image(saved(tmp_path / "x.png", Image.fromarray(pixels), exif=exif))
    assert loaded.size == (2, 4)
    assert [loaded.getpixel((0, y))[0] for y in range(4)] == [255, 255, 0, 0]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as opened:
        assert opened.n_frames == 2
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_first_frame_of_webp_and_first_page_of_tiff(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name, options in (("x.webp", {"lossless": True}), ("x.tiff", {})):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
        with Image.open(path) as opened:
            assert opened.n_frames == 2
        assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_transparent_colour_of_a_png_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    loaded = load_image(saved(tmp_path / "x.png", image, transparency=(1, 2, 3)))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


def test_extreme_shapes_are_decoded_as_they_are(tmp_path: Path) -> None:
    for size in ((1, 3000), (3000, 1)):
        assert load_image(saved(tmp_path / "x.png", Image.new("L", size))).size == size


def test_cmyk(tmp_path: Path) -> None:
    loaded = load_image(saved(tmp_path / "x.tiff", Image.new("CMYK", (1, 1), (0, 255, 255, 0))))
    assert (loaded.mode, loaded.getpixel((0, 0))) == ("RGB", (255, 0, 0))


def test_cielab_is_not_taken_for_transparent(tmp_path: Path) -> None:
    """CIELAB has a band named A, a colour axis; all zero is a deep blue (and Pillow's spare byte is zero too)."""
    blue = Image.new("LAB", (1, 1))
    for given in (blue, saved(tmp_path / "x.tiff", blue)):
        red, _, blueness = load_image(given).getpixel((0, 0))
        assert red < 30 < 150 < blueness


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "YCbCr", "F", "I;16"])
def test_one_pixel_of_any_mode(mode: str) -> None:
    loaded = load_image(Image.new(mode, (1, 1)))
    assert (loaded.mode, loaded.size) == ("RGB", (1, 1))


def test_content_key_does_not_depend_on_the_encoding(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8))
    copies = [load_image(saved(tmp_path / f"x.{kind}", image)) for kind in ("png", "bmp", "tiff")]
    (tmp_path / "again.png").write_bytes(png_bytes(copies[0]))
    copies.append(load_image(tmp_path / "again.png"))
    assert {image_sha256(copy) for copy in copies} == {image_sha256(image)}
    reshaped = Image.frombytes("RGB", (5, 7), image.tobytes())
    assert image_sha256(reshaped) != image_sha256(image)


# ---- what is refused ----


def test_text_that_calls_itself_png(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("secret words")
    with pytest.raises(ImageError, match=r"'x\.png' cannot be decoded.*allowed formats: PNG") as refused:
        load_image(tmp_path / "x.png")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_truncated_file(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path / f"x.{kind}", image)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=re.escape(path.name)):
        load_image(path)


def test_empty_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    for path in (tmp_path / "x.png", tmp_path):
        with pytest.raises(ImageError, match="cannot be decoded"):
            load_image(path)


def test_a_flipped_bit_in_a_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", (8, 8), "red"))
    data = bytearray(path.read_bytes())
    data[29] ^= 1  # in the CRC of the header
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"'x\.png' cannot be decoded"):
        load_image(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "x.png", root=tmp_path)
    with pytest.raises(ImageError, match="not a regular file"):
        load_image("/dev/zero")


@pytest.mark.parametrize(
    "text", ["<svg xmlns='http://www.w3.org/2000/svg'/>", "8BPS\0\1", "SIMPLE  =                    T"]
)
def test_svg_psd_and_fits_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.png").write_text(text)
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "x.png")


def test_eps_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Ghostscript on the path leaves a trace when it is started."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "x.png").write_bytes(EPS)
    with Image.open(tmp_path / "x.png") as opened:  # Pillow itself would take it
        assert opened.format == "EPS"
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "x.png")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "SGI"])
def test_formats_outside_the_list_are_refused(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", (16, 16)), format=kind)
    with pytest.raises(ImageError, match=r"cannot be decoded .*allowed formats: PNG, JPEG, WEBP, GIF, BMP, TIFF"):
        load_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixel_cap_holds_before_decoding(tmp_path: Path) -> None:
    """13,000² = 169 MP in about 20 kB: Pillow only warns, and would take 169 MB of memory or more."""
    path = bomb(tmp_path / "x.png", 13_000)
    assert path.stat().st_size < 40_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=f"13000x13000 pixels, over the cap of {MAX_PIXELS}"):
        load_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_beyond_pillows_own_limit(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(bomb(tmp_path / "x.png", 20_000))


@pytest.mark.parametrize("url", ["http://localhost/x.png", "https://host/x.png", "file:///etc/passwd", "s3://b/x.png"])
def test_nothing_is_fetched(tmp_path: Path, url: str) -> None:
    for root in (None, tmp_path):
        with pytest.raises(ImageError, match="not a local path; nothing is fetched"):
            load_image(url, root=root)


def test_nul_in_a_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a local path"):
        load_image("x.png\0.txt", root=tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'gone\.png' does not exist"):
        load_image(tmp_path / "gone.png")


def test_a_path_stays_inside_its_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "sub", outside, tmp_path / "root-beside"):
        folder.mkdir(parents=True)
        saved(folder / "x.png", Image.new("RGB", (1, 1), "red"))
    (root / "link.png").symlink_to(outside / "x.png")
    (root / "folder").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "sub" / "x.png")

    for escape in ("../outside/x.png", str(outside / "x.png"), "link.png", "folder/x.png", "../root-beside/x.png"):
        with pytest.raises(ImageError, match="leaves the image root"):
            load_image(escape, root=root)
    for inside in ("sub/x.png", "sub/../sub/x.png", str(root / "sub" / "x.png"), "inner.png"):
        assert load_image(inside, root=root).getpixel((0, 0)) == (255, 0, 0)
    assert resolve_inside("sub/x.png", root) == (root / "sub" / "x.png").resolve()


def test_embedded_bytes_are_read_and_a_path_in_a_data_row_never_is(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    Image.new("RGB", (2, 1), (1, 2, 3)).save(path)
    assert load_image(path.read_bytes()).getpixel((0, 0)) == (1, 2, 3)
    assert load_image({"bytes": path.read_bytes(), "path": None}).size == (2, 1)
    with pytest.raises(ImageError, match="a path inside a data file is not opened"):
        load_image({"bytes": None, "path": str(path)})
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")


@pytest.mark.parametrize(
    "name",
    ["data:image/png;base64," + "A" * 9000, "DATA:,x", "x" * 300, "a/" * 3000, "loop", "loop/a.png", "locked/a.png",
     "http:/one-slash", "s3:/x", "\udcff.png", "file:/etc/passwd"],
)  # fmt: skip
def test_a_name_that_cannot_be_followed_is_an_image_error(tmp_path, name):
    """Each ended a whole stage: too long for a disk, links in a circle, a folder that may not be entered."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "locked").mkdir(mode=0o000)
    for root in (tmp_path, None):
        path = name if root else (name if ":" in name else str(tmp_path / name))
        with pytest.raises(ImageError) as raised:
            load_image(path, root=root)
        assert len(str(raised.value)) < 1000
    (tmp_path / "locked").chmod(0o700)


def test_a_name_outside_the_locale_is_an_image_error(tmp_path):
    """In a process whose file names are Latin-1, as under LC_ALL=de_DE.ISO-8859-1."""
    script = (
        "import sys; from mpo.multimodal.images import load_image\n"
        "try: load_image('\\u56fe.png', root=sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__)"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "ImageError", done.stderr
