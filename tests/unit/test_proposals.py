"""`.ci/watch` and `.ci/propose`: one request or issue for each release, with real git and stand-ins for all else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from unit.conftest import REPOSITORY

# What nox would do: two branches, and a report.
NOX = """\
#!/bin/sh
[ "$*" = "-s watch" ] || exit 9
mkdir -p .nox/watched
for version in 1.2 1.3; do
    git show-ref --quiet "refs/remotes/origin/watch/$version" && continue
    git checkout --quiet --detach && git commit --quiet --allow-empty --message="Take $version"
    git branch "watch/$version" && git checkout --quiet main
    echo "about $version" >".nox/watched/$version.md"
done
echo "why 1.4 does not fit" >.nox/watched/1.4.md
"""
# A program that notes what it is asked, and answers with the titles of the issues that it was asked to open.
NOTING = """\
#!/bin/sh
[ ! -f "{log}.fails" ] || case "$*" in *"pr create"*|*merge_requests*) exit 7;; esac
{{ printf '%s\\n' "$*" | tr '\\n' ' '; echo; }} >>"{log}"
case "$*" in *"issue list"*|*--get*)
    ! grep -q "needs a person.*1.4.md" "{log}" || echo '[{{"title":"sglang 1.4 needs a person"}}]';;
esac
"""
GITHUB = {"GITHUB_REF_NAME": "main", "GH_TOKEN": "x"}
GITLAB = {
    "GITLAB_CI": "true", "CI_API_V4_URL": "http://lab:8080/git/api/v4", "CI_PROJECT_ID": "7",
    "CI_PROJECT_URL": "http://lab:8080/git/a/b", "CI_COMMIT_BRANCH": "main", "CI_DEFAULT_BRANCH": "trunk",
    "WATCH_TOKEN": "secret",
}  # fmt: skip


class Desk:
    """A remote repository, and clones of it as jobs have them."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.log = folder, folder / "asked"
        tools = folder / "tools"
        tools.mkdir()
        for name, text in {"nox": NOX, "python3": "#!/bin/sh\n", "gh": NOTING, "curl": NOTING}.items():
            (tools / name).write_text(text.replace("{log}", str(self.log)).replace("{{", "{").replace("}}", "}"))
            (tools / name).chmod(0o755)
        self.remote = folder / "remote.git"
        # A push to the address of GitLab's comes to the same repository.
        where = {
            "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"
        }  # fmt: skip
        (folder / "gitconfig").write_text(
            f"[user]\n name = me\n email = me@here\n"
            f'[url "{self.remote}"]\n insteadOf = http://watch:secret@lab:8080/git/a/b.git\n'
        )
        self.env = {**os.environ, **where, **env}
        self.git("init", "--quiet", "--initial-branch=main", str(folder / "first"), cwd=folder)
        (folder / "first/.ci").mkdir()
        for name in ("watch", "propose"):
            shutil.copy(REPOSITORY / ".ci" / name, folder / "first/.ci" / name)
        (folder / "first/.gitignore").write_text(".nox\nwatched\n")
        self.git("add", "--all", cwd=folder / "first")
        self.git("commit", "--quiet", "--message=first", cwd=folder / "first")
        self.git("clone", "--quiet", "--bare", str(folder / "first"), str(self.remote), cwd=folder)

    def git(self, *words: str, cwd: Path) -> str:
        done = subprocess.run(["git", *words], cwd=cwd, env=self.env, capture_output=True, text=True, check=True)
        return done.stdout

    def job(self, *words: str, watched: Path | None = None) -> Path:
        """Run a job's script in a new clone, which is returned."""
        clone = self.folder / f"clone{len(list(self.folder.glob('clone*')))}"
        self.git("clone", "--quiet", str(self.remote), str(clone), cwd=self.folder)
        if watched is not None:
            shutil.copytree(watched, clone / "watched", symlinks=True)
        done = subprocess.run(words, cwd=clone, env=self.env, capture_output=True, text=True, check=False)
        self.said, self.status = done.stdout + done.stderr, done.returncode
        return clone

    def run(self) -> None:
        """Run both jobs, as one pipeline does."""
        watched = self.job(".ci/watch", "watched") / "watched"
        assert self.status == 0, self.said
        self.job(".ci/propose", "watched", watched=watched)

    def asked(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if "issue list" not in line and "--get" not in line]

    def branches(self) -> set[str]:
        return set(self.git("for-each-ref", "--format=%(refname:short)", "refs/heads", cwd=self.remote).split())


@pytest.fixture(params=[GITHUB, GITLAB], ids=["github", "gitlab"])
def desk(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name in [name for name in os.environ if name.startswith(("GIT_", "CI_", "GITLAB_", "GITHUB_"))]:
        monkeypatch.delenv(name)
    return Desk(tmp_path, request.param)


def test_each_release_is_proposed_once(desk: Desk) -> None:
    desk.run()
    assert desk.status == 0, desk.said
    assert desk.branches() == {"main", "watch/1.2", "watch/1.3"}
    asked = desk.asked()
    requests = [line for line in asked if "Take sglang" in line]
    assert [("watch/1.2" in line, "watch/1.3" in line) for line in requests] == [(True, False), (False, True)]
    assert all("main" in line and "trunk" not in line for line in requests)
    assert "1.2.md" in requests[0]
    (issue,) = (line for line in asked if line not in requests)
    assert "sglang 1.4 needs a person" in issue
    assert "1.4.md" in issue
    desk.run()
    assert desk.status == 0, desk.said
    assert desk.asked() == asked
    assert "secret" not in desk.said


def test_a_branch_without_its_request_does_not_stay(desk: Desk) -> None:
    (desk.folder / "asked.fails").touch()
    desk.run()
    assert desk.status != 0
    assert desk.branches() == {"main"}
    (desk.folder / "asked.fails").unlink()
    desk.run()
    assert desk.branches() == {"main", "watch/1.2", "watch/1.3"}


def test_what_a_clone_has_of_an_earlier_job_is_not_proposed(desk: Desk) -> None:
    watched = desk.job(".ci/watch", "watched") / "watched"
    clone = desk.job("true", watched=watched)
    for name in ("heads/watch/1.2", "heads/watch/1.4", "proposed/1.2", "proposed/1.4"):
        desk.git("commit", "--quiet", "--allow-empty", f"--message=old {name}", cwd=clone)
        desk.git("update-ref", f"refs/{name}", "HEAD", cwd=clone)
    done = subprocess.run(
        [".ci/propose", "watched"], cwd=clone, env=desk.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert desk.branches() == {"main", "watch/1.2", "watch/1.3"}
    assert desk.git("log", "-1", "--format=%s", "watch/1.2", cwd=desk.remote) == "Take 1.2\n"
    assert "sglang 1.4 needs a person" in "".join(desk.asked())
    assert "secret" not in (clone / ".git/config").read_text()


def test_where_nothing_was_seen_nothing_is_asked(desk: Desk) -> None:
    nox = desk.folder / "tools/nox"
    nox.write_text("#!/bin/sh\nexit 0\n")
    desk.run()
    assert desk.status == 0, desk.said
    assert desk.asked() == []
    assert desk.branches() == {"main"}


def test_where_the_watcher_fails_the_job_does(desk: Desk) -> None:
    (desk.folder / "tools/nox").write_text("#!/bin/sh\necho no network\nexit 1\n")
    desk.job(".ci/watch", "watched")
    assert desk.status == 1
    assert "no network" in desk.said


def test_what_was_finished_before_the_watcher_failed_is_proposed(desk: Desk) -> None:
    (desk.folder / "tools/nox").write_text(NOX + "exit 3\n")
    watched = desk.job(".ci/watch", "watched") / "watched"
    assert desk.status == 3
    desk.job(".ci/propose", "watched", watched=watched)
    assert desk.status == 0, desk.said
    assert desk.branches() == {"main", "watch/1.2", "watch/1.3"}


OUTSIDE = {
    "a new file": "echo x >.gitlab-ci.yml; git add .; git commit -qm x",
    "what a later commit takes back": "echo x >.gitlab-ci.yml; git add .; git commit -qm x; git revert --no-edit HEAD",
    "what a file was before": "git mv .gitignore patches/x; git commit -qm x",
    "what a merge brings": "git branch old; git commit -q --allow-empty -m x; echo x >.gitlab-ci.yml; git add .;"
    " git reset -q --soft $(git commit-tree -p HEAD -p old -m x $(git write-tree))",
}


@pytest.mark.parametrize("how", OUTSIDE)
def test_a_branch_that_changes_more_than_the_watcher_does_is_not_pushed(desk: Desk, how: str) -> None:
    """Upstream's code may have made it, and a pipeline would run it."""
    (desk.folder / "tools/nox").write_text(
        f"#!/bin/sh\nset -e\nmkdir -p .nox/watched patches\ngit checkout -q --detach\n{OUTSIDE[how]}\n"
        "git branch watch/1.2\ngit checkout -q main\necho about >.nox/watched/1.2.md\n"
    )
    desk.run()
    assert desk.status == 1
    assert (".gitignore" if "mv" in OUTSIDE[how] else ".gitlab-ci.yml") in desk.said
    assert "watch/1.2" in desk.said
    assert desk.branches() == {"main"}
    assert desk.asked() == []


def test_what_a_person_has_pushed_to_a_branch_keeps_none_that_goes_on_from_it(desk: Desk) -> None:
    desk.run()
    clone = desk.job("git", "checkout", "--quiet", "watch/1.2")
    (clone / "overlay.py").write_text("for 1.2\n")
    desk.git("add", "--all", cwd=clone)
    desk.git("commit", "--quiet", "--message=for 1.2", cwd=clone)
    desk.git("push", "--quiet", "origin", "watch/1.2", ":watch/1.3", cwd=clone)
    (desk.folder / "tools/nox").write_text(
        "#!/bin/sh\nset -e\nmkdir -p .nox/watched patches/a ci\ngit checkout -q --detach origin/watch/1.2\n"
        "touch patches/a/1.0.patch upstream.lock ci/results.json; git add .; git commit -qm x\n"
        "git branch watch/1.3\ngit checkout -q main\necho about >.nox/watched/1.3.md\n"
    )
    desk.run()
    assert desk.status == 0, desk.said
    assert desk.branches() == {"main", "watch/1.2", "watch/1.3"}


def test_a_page_that_leads_elsewhere_is_not_read(desk: Desk) -> None:
    (desk.folder / "tools/nox").write_text("#!/bin/sh\nln -s ../.git/config watched/1.4.md\n")
    desk.run()
    assert desk.status == 0, desk.said
    assert desk.asked() == []


def test_a_remote_that_does_not_answer_is_an_error(desk: Desk) -> None:
    """Else each branch would be taken for one that is not there yet."""
    watched = desk.job(".ci/watch", "watched") / "watched"
    git = desk.folder / "tools/git"
    git.write_text(f'#!/bin/sh\n[ "$1" != ls-remote ] || exit 128\nexec {shutil.which("git")} "$@"\n')
    git.chmod(0o755)
    desk.job(".ci/propose", "watched", watched=watched)
    assert desk.status != 0
    assert desk.branches() == {"main"}
