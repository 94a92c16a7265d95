from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cli
from overlay_tools.archive.record import format_record, hash_of, parse_record
from overlay_tools.errors import BuildError
from overlay_tools.wheels import dist, signature
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.manifest import MANIFEST, tree_hash
from overlay_tools.wheels.provenance import statement_of
from overlay_tools.wheels.signature import envelope_of, load_signer
from overlay_tools.wheels.verify import verify_wheel
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from unit.conftest import Miniature

KINDS = {
    "ed25519": "genpkey -algorithm ed25519",
    "ecdsa-sha2-nistp256": "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
    "rsa": "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048",
    "p384": "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
    "x25519": "genpkey -algorithm x25519",
}
SIGNED = "ed25519"


def make_key(folder: Path, kind: str, name: str = "", *words: str) -> tuple[str, str]:
    """Make a key as the pages say, and return the paths of its private and its public part."""
    private, public = folder / f"{name or kind}.pem", folder / f"{name or kind}.pub"
    subprocess.run(["openssl", *KINDS[kind].split(), *words, "-out", private], check=True, capture_output=True)
    passed = ["-passin", words[-1]] if words else []
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public, *passed], check=True)
    return str(private), str(public)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return make_key(tmp_path, "ed25519")


@pytest.fixture
def wheel(mini_here: Miniature, keys: tuple[str, str]) -> Path:
    """Return a wheel that is signed with the first of the keys."""
    path = mini_here.build().path
    assert cli.main(["sign", "--key", keys[0]]) == 0
    return path


@pytest.fixture
def failed(wheel: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return what expects that `verify --key` fails before it reads more of the wheel, and returns what it says."""

    def expect() -> str:
        capsys.readouterr()
        assert cli.main(["verify", str(wheel), "--key", keys[1]]) == 1
        said = capsys.readouterr()
        assert "differences" not in said.out
        return said.err

    return expect


def envelope(wheel: Path) -> dict[str, Any]:
    (line,) = envelope_of(wheel).read_text().splitlines()
    return dict(json.loads(line))


def repack(path: Path, name: str, content: bytes) -> None:
    """Change a file of a wheel, and make RECORD and the manifest fit."""
    with zipfile.ZipFile(path) as wheel:
        files = {info.filename: wheel.read(info) for info in wheel.infolist() if not info.is_dir()}
    files[name] = content
    folder = next(each.partition("/")[0] for each in files if each.endswith(f".dist-info/{MANIFEST}"))
    record = parse_record(files.pop(f"{folder}/RECORD"), "RECORD")
    manifest = json.loads(files[f"{folder}/{MANIFEST}"])
    manifest["files"][name][1] = hash_hex(content)
    for each in record.values():
        if each.hash_ is not None:
            each.hash_, each.size = hash_of(files[each.path]), len(files[each.path])
    manifest["tree"] = tree_hash(record.values(), folder)
    files[f"{folder}/{MANIFEST}"] = data = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
    record[f"{folder}/{MANIFEST}"].hash_, record[f"{folder}/{MANIFEST}"].size = hash_of(data), len(data)
    with zipfile.ZipFile(path, "w") as wheel:
        for member, data in {**files, f"{folder}/RECORD": format_record(record.values())}.items():
            wheel.writestr(member, data)


def hash_hex(content: bytes) -> str:
    return base64.urlsafe_b64decode(hash_of(content).value + "=").hex()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-sha2-nistp256"])
def test_a_signed_wheel_is_good(
    mini_here: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    private, public = make_key(tmp_path, kind)
    wheels = [mini_here.build().path, build_kernel(mini_here.project, mini_here.lock["1.0"]).path]
    assert cli.main(["sign", "--key", private]) == 0
    assert cli.main(["verify", *map(str, wheels), "--key", public]) == 0
    out = capsys.readouterr().out
    assert all(f"{wheel.name}: signed with {kind}, key " in out for wheel in wheels)
    assert out.count("no differences") == 2
    for wheel in wheels:
        found = envelope(wheel)
        assert envelope_of(wheel).name == f"{wheel.name}.intoto.jsonl"
        assert base64.b64decode(found["payload"]) == statement_of(wheel).read_bytes()
        assert found["payloadType"] == "application/vnd.in-toto+json"


def test_no_other_command_writes_while_it_signs(
    wheel: Path, keys: tuple[str, str], mini_here: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that sign at once, each must see what the other has written."""
    real, refused = signature.plan_envelope, list[Path]()

    def plan(wheel: Path, signer: CryptoSigner) -> tuple[bytes, list[str]]:
        with (
            pytest.raises(BuildError, match="Another build has held"),
            dist.only_writer_of_dist(mini_here.project, wheel),
        ):
            pass
        refused.append(wheel)
        return real(wheel, signer)

    monkeypatch.setattr(dist, "_PATIENCE", 0)
    monkeypatch.setattr(signature, "plan_envelope", plan)
    assert cli.main(["sign", "--key", keys[0], str(wheel)]) == 0
    assert refused == [wheel]


def test_openssl_finds_the_signature_right(wheel: Path, keys: tuple[str, str], tmp_path: Path) -> None:
    found = envelope(wheel)
    payload, kind = base64.b64decode(found["payload"]), found["payloadType"]
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload))
    (tmp_path / "signature").write_bytes(base64.b64decode(found["signatures"][0]["sig"]))
    files = ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "signature")]
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin", *files]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wheel_repacked_with_a_matching_record_and_manifest_is_found(wheel: Path, failed: Callable[[], str]) -> None:
    repack(wheel, "sglang/models/ours.py", b"import os; os.system('id')\n")
    assert verify_wheel(wheel).differences == []  # without a key, it looks right
    assert "is not the wheel that" in failed()


def test_a_statement_that_was_made_to_fit_is_found_too(wheel: Path, failed: Callable[[], str]) -> None:
    repack(wheel, "sglang/models/ours.py", b"import os; os.system('id')\n")
    statement = json.loads(statement_of(wheel).read_bytes())
    statement["subject"][0]["digest"]["sha256"] = hash_hex(wheel.read_bytes())
    found = envelope(wheel)
    found["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    envelope_of(wheel).write_text(json.dumps(found))
    assert "changed after it was signed" in failed()


def test_an_older_wheel_under_the_name_of_a_newer_one_is_found(
    wheel: Path, failed: Callable[[], str], mini_here: Miniature, keys: tuple[str, str]
) -> None:
    older = mini_here.build("1.1").path
    assert cli.main(["sign", "--key", keys[0], str(older)]) == 0
    for place in (lambda path: path, envelope_of):
        place(older).replace(place(wheel))
    assert f"is about {older.name}, not {wheel.name}" in failed()


def test_no_envelope(wheel: Path, failed: Callable[[], str]) -> None:
    envelope_of(wheel).unlink()
    assert f"{envelope_of(wheel)}: No such file" in failed()


def test_no_wheel(wheel: Path, failed: Callable[[], str]) -> None:
    wheel.unlink()
    assert f"{wheel}: No such file" in failed()


def test_another_key(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, other = make_key(tmp_path, "ed25519", "other")
    assert cli.main(["verify", str(wheel), "--key", other]) == 1
    assert "is not signed with this key" in capsys.readouterr().err


def test_another_key_under_the_name_of_the_right_one(
    wheel: Path, failed: Callable[[], str], tmp_path: Path, mini_here: Miniature
) -> None:
    keyid = envelope(wheel)["signatures"][0]["keyid"]
    private, _ = make_key(tmp_path, "ed25519", "other")
    envelope_of(wheel).unlink()
    assert cli.main(["sign", "--key", private]) == 0
    found = envelope(wheel)
    found["signatures"][0]["keyid"] = keyid
    envelope_of(wheel).write_text(json.dumps(found))
    assert "changed after it was signed" in failed()


def change(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: found.update(fields)


def drop_byte(found: dict[str, Any]) -> None:
    signature = bytearray(base64.b64decode(found["signatures"][0]["sig"]))
    signature[5] ^= 1
    found["signatures"][0]["sig"] = base64.b64encode(signature).decode()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(payloadType="text/plain"), "changed after it was signed"),
        (change(payload="e30="), "changed after it was signed"),
        (drop_byte, "changed after it was signed"),
        (change(signatures=[]), "is not signed with this key"),
        (change(payload=None), "cannot be read as an envelope"),
        (change(signatures=[{"sig": "e30="}]), "cannot be read as an envelope"),
        (lambda found: found.pop("payloadType"), "cannot be read as an envelope"),
    ],
)
def test_a_damaged_envelope(
    wheel: Path, failed: Callable[[], str], damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    found = envelope(wheel)
    damage(found)
    envelope_of(wheel).write_text(json.dumps(found))
    assert said in failed()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_envelope_is_refused_and_not_written_over(
    wheel: Path, failed: Callable[[], str], keys: tuple[str, str], capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    envelope_of(wheel).write_bytes(text)
    assert "cannot be read as an envelope" in failed()
    assert cli.main(["sign", "--key", keys[0]]) == 1
    assert "Move it away" in capsys.readouterr().err
    assert envelope_of(wheel).read_bytes() == text


def test_a_signed_text_that_is_no_statement_is_refused(
    wheel: Path, failed: Callable[[], str], keys: tuple[str, str]
) -> None:
    signer = load_signer(Path(keys[0]), str)
    for kind, payload, said in [
        ("application/vnd.in-toto+json", b"{}", "is not a statement of a wheel's provenance"),
        ("text/plain", statement_of(wheel).read_bytes(), "signs 'text/plain', not a statement"),
    ]:
        made = Envelope(payload, kind, {})
        made.sign(signer)
        envelope_of(wheel).write_text(json.dumps(made.to_dict()))
        assert f"{envelope_of(wheel)} {said}" in failed()


def test_two_keys_can_sign_one_wheel(wheel: Path, keys: tuple[str, str], tmp_path: Path) -> None:
    private, public = make_key(tmp_path, "ecdsa-sha2-nistp256")
    assert cli.main(["sign", "--key", private]) == 0
    assert cli.main(["sign", "--key", keys[0]]) == 0  # it does not sign twice
    assert len(envelope(wheel)["signatures"]) == 2
    for key in (keys[1], public):
        assert cli.main(["verify", str(wheel), "--key", key]) == 0


def test_a_signature_under_another_statement_goes_and_is_named(
    wheel: Path, tmp_path: Path, mini_here: Miniature, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    mini_here.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    mini_here.build()
    private, public = make_key(tmp_path, "ecdsa-sha2-nistp256")
    keyid = envelope(wheel)["signatures"][0]["keyid"]
    assert cli.main(["sign", "--key", private]) == 0
    assert f"took out the signature of {keyid[:12]}" in capsys.readouterr().out
    assert [each["keyid"] == keyid for each in envelope(wheel)["signatures"]] == [False]
    assert cli.main(["verify", str(wheel), "--key", public]) == 0


def test_a_wheel_without_its_own_statement_is_not_signed(
    mini_here: Miniature, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = mini_here.build("1.0").path, mini_here.build("1.1").path
    statement_of(second).unlink()
    assert cli.main(["sign", "--key", keys[0]]) == 1
    said = capsys.readouterr()
    assert str(statement_of(second)) in said.err
    assert said.out == ""
    repack(second, "sglang/models/ours.py", b"OURS = 9\n")
    mini_here.write("overlay/sglang/models/ours.py", "OURS = 3\n")
    statement_of(second).write_bytes(
        statement_of(first).read_bytes().replace(first.name.encode(), second.name.encode())
    )
    assert cli.main(["sign", "--key", keys[0]]) == 1
    assert "is not the wheel that" in capsys.readouterr().err
    assert not envelope_of(first).exists()  # one wheel that cannot be signed, and none is


def test_there_must_be_a_wheel_to_sign_and_to_verify(
    mini_here: Miniature, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sign", "--key", keys[0]]) == 2
    assert "There is no wheel in" in capsys.readouterr().err
    assert cli.main(["verify", "--env", sys.executable, "--key", keys[1]]) == 2
    assert "--key is for wheels" in capsys.readouterr().err
    assert cli.main(["verify", "gone.whl", "--key", keys[1]]) == 1
    assert "gone.whl.intoto.jsonl: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "said"),
    [("rsa", "a key for rsassa"), ("p384", "a key for ecdsa-sha2-nistp384"), ("x25519", "unsupported key")],
)
def test_a_key_of_another_kind_is_refused(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, said: str
) -> None:
    private, public = make_key(tmp_path, kind)
    for words in (["sign", "--key", private], ["verify", str(wheel), "--key", public]):
        assert cli.main(words) == 1
        assert said in capsys.readouterr().err


def test_what_is_no_key_is_named(wheel: Path, keys: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys
    for words, said in [
        (["sign", "--key", public], f"{public}: no private key can be read"),
        (["verify", str(wheel), "--key", private], f"{private}: no public key can be read"),
        (["sign", "--key", "gone.pem"], "gone.pem: No such file"),
        (["verify", str(wheel), "--key", "gone.pub"], "gone.pub: No such file"),
    ]:
        capsys.readouterr()
        assert cli.main(words) == 1
        assert said in capsys.readouterr().err


def test_a_key_with_a_password(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = make_key(tmp_path, "ed25519", "locked", "-aes-256-cbc", "-pass", "pass:geheim ü")
    assert cli.main(["sign", "--key", private]) == 1
    said = capsys.readouterr().err
    assert "there is no terminal to ask" in said
    assert "SGLANG_OVERLAY_KEY_PASSWORD" in said
    for wrong in ("wrong", ""):
        monkeypatch.setenv("SGLANG_OVERLAY_KEY_PASSWORD", wrong)
        assert cli.main(["sign", "--key", private]) == 1
        assert f"{private}: no private key can be read" in capsys.readouterr().err
    monkeypatch.setenv("SGLANG_OVERLAY_KEY_PASSWORD", "geheim ü")
    assert cli.main(["sign", "--key", private]) == 0
    assert cli.main(["verify", str(wheel), "--key", public]) == 0
    monkeypatch.delenv("SGLANG_OVERLAY_KEY_PASSWORD")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "geheim ü" if private in prompt else "")
    assert cli.main(["sign", "--key", private]) == 0

    def closed(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", closed)
    assert cli.main(["sign", "--key", private]) == 1
    assert f"{private} has a password, and none was given." in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_named(
    wheel: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    good = envelope_of(wheel).read_bytes()
    monkeypatch.setattr(Path, "replace", full)
    assert cli.main(["sign", "--key", keys[0]]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert envelope_of(wheel).read_bytes() == good
    assert list(wheel.parent.glob(".*.part")) == []


def test_without_its_library_the_tool_says_what_to_install(mini: Miniature, keys: tuple[str, str]) -> None:
    wheel = mini.build().path
    script = (
        "import sys; sys.modules['securesystemslib'] = None\n"
        "from overlay_tools import cli; sys.exit(cli.main(sys.argv[1:]))"
    )

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *words]
        return subprocess.run(command, cwd=mini.root, capture_output=True, text=True, check=False)

    for words in (["sign", "--key", keys[0]], ["verify", str(wheel), "--key", keys[1]]):
        done = call(*words)
        assert done.returncode == 1
        assert "Signatures need a library that is not installed" in done.stderr
        assert "Traceback" not in done.stderr
    assert call("verify", str(wheel)).returncode == 0
