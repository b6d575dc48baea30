"""Signed policies, as an operator meets them: keys, bundles, a host that takes no others,
and a compile cache that outlives it."""

import pytest

import policy_files
import settings
from homeostat_process import Homeostat, run_cli, text_of, wait_until

WHO = "Which policy routes you?"


@pytest.fixture
def signer(tmp_path):
    """Signs the components of the tests with a key of its own."""
    public = run_cli("policy", "keygen", tmp_path / "ops").stdout.strip()
    assert (tmp_path / "ops.key").stat().st_mode & 0o077 == 0

    def bundle(name: str, revision: int, *options, key="ops"):
        folder = tmp_path / f"{name}-{revision}-{key}"
        folder.mkdir()
        component = folder / "route-signed.wasm"
        component.write_bytes(policy_files.build()[name])
        sign = ["policy", "sign", component, "--key", tmp_path / f"{key}.key"]
        run_cli(*sign, "--revision", revision, *options)
        output = folder / "route-signed.policy"
        run_cli("policy", "pack", component, "-o", output)
        return output

    bundle.public = public
    bundle.folder = tmp_path
    return bundle


@pytest.fixture
def config(signer, tmp_path):
    config = settings.basic() + settings.no_encoder() + settings.signed_by(ops=signer.public)
    return config + f'[policies.cache]\ndir = "{tmp_path / "compiled"}"\n'


def put(server, bundle, query="") -> tuple[int, str]:
    response = server.http.put(f"/admin/v1/policies/route{query}", content=bundle.read_bytes())
    return response.status_code, response.text


def routes_as(server, answer: str) -> bool:
    response = server.ask(WHO)
    return response.headers["x-homeostat-tier"] == "direct" and text_of(response) == answer


def test_a_host_takes_signed_bundles_only_and_remembers_revisions(start, signer, config):
    server = start(config)
    assert put(server, signer("answers-a", 2))[0] == 200
    assert routes_as(server, "A")
    unsigned = server.http.put(
        "/admin/v1/policies/route", content=policy_files.build()["answers-b"]
    )
    assert unsigned.status_code == 422 and "unsigned" in unsigned.text
    run_cli("policy", "keygen", signer.folder / "stranger")
    for wrong, word in [
        (signer("answers-b", 3, key="stranger"), "unknown-key"),
        (signer("answers-b", 1), "old-revision"),
        (signer("answers-b", 4, "--valid-from-days", 1), "not-yet-valid"),
    ]:
        status, text = put(server, wrong)
        assert status == 422 and word in text, text
        assert routes_as(server, "A")
    # A restart remembers, and does not compile again.
    server.stop()
    again = Homeostat(server.folder, config).start()
    try:
        old = signer.folder / "answers-b-1-ops" / "route-signed.policy"
        status, text = put(again, old)
        assert status == 422 and "old-revision" in text, text
        newest = signer.folder / "answers-a-2-ops" / "route-signed.policy"
        response = again.http.put("/admin/v1/policies/route", content=newest.read_bytes())
        assert response.json()["from_cache"] is True, response.text
        status, text = put(again, old, "?allow-downgrade=true")
        assert status == 200, text
        assert routes_as(again, "B")
        file = again.policies / "route-signed.policy"
        file.write_bytes(signer("answers-a", 5).read_bytes())
        wait_until("A routes", lambda: routes_as(again, "A"))
    finally:
        again.stop()


def test_the_command_line_says_who_signed_a_bundle(signer):
    bundle = signer("answers-a", 7, "--valid-for-days", 30)
    said = run_cli("policy", "verify", bundle, "--key", signer.public).stdout
    assert "route-signed 0.1.0 revision 7, signed by --key, for route" in said
    nobody = run_cli("policy", "verify", bundle, check=False)
    assert nobody.returncode == 1 and "unknown-key" in nobody.stderr
