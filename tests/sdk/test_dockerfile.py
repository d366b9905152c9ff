"""`from_dockerfile` and what Dockerfiles do: stages, COPY with patterns and `.dockerignore`, ARG, ENV, SHELL, ENTRYPOINT."""

import pytest
from imaging import program, run

pytestmark = pytest.mark.timeout(600)

# The base of `debian_slim("3.11")`, so that the node has it already.
BASE = "python:3.11.12-slim-bookworm"


def test_from_dockerfile(client, tmp_path, unique):
    """Two stages with everything that people write: each instruction's effect is seen by the function."""
    folder = tmp_path / "dockerfile"
    for name, text in {
        "app/a.txt": "A", "app/b.txt": "B", "app/c.md": "C", "app/sub/d.txt": "D", "app/sub/private.key": "K",
        "app/debug.log": "no", "app/keep.log": "yes", "notes/n 1.txt": "N1", "one.cfg": "1", "two.cfg": "2", "entry.sh":
        '#!/bin/sh\nexport STARTED_BY="entry $GREETING"\nexec "$@"\n',
        ".dockerignore": "**/*.log\n!app/keep.log\n**/private.*\n# a comment\n",
        "Dockerfile": f"""# syntax=docker/dockerfile:1
ARG BASE={BASE}
FROM ${{BASE}} AS build
ARG WORD
ARG OTHER=default-$WORD
ENV GREETING="hello ${{WORD}}" QUOTED='$WORD' UNSET=[${{NOTHING:-none}}] SET=[${{WORD:+some}}]
ENV LATER $GREETING old form of $WORD
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
WORKDIR deeper
COPY app/*.txt app/sub ./
COPY app /whole/
COPY notes /notes
COPY o?e.cfg t[a-z]o.cfg /cfg/
RUN [[ -n $GREETING ]] && echo "$GREETING;$OTHER;$LATER;$QUOTED$UNSET$SET;$PWD;{unique}" > said \\
    # a comment between
    && ls *.txt | sort | tr '\\n' ' ' > listed
RUN false | true || echo "pipefail" > pipefail
RUN <<EOF
for i in 1 2; do echo "line $i" >> heredoc; done
EOF
COPY <<-WORDS /inline.txt
	for $WORD
WORDS

FROM ${{BASE}}
LABEL a=b
COPY --from=build --chown=1000:1001 --chmod=640 /src/deeper/said /out/said
COPY --from=build /src/deeper/ /whole /cfg /inline.txt /all/
COPY --from=0 ["/notes/n 1.txt", "/out/n"]
COPY --chmod=755 entry.sh /usr/local/bin/entry
ENV GREETING=again
USER nobody
RUN id -un > /tmp/user
USER root
ENTRYPOINT ["/usr/local/bin/entry"]
""",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    image = f'modal.Image.from_dockerfile("Dockerfile", context_dir={str(folder)!r}, build_args={{"WORD": "world"}})'
    body = """
    text = lambda name: open(name).read().strip()
    at = os.stat("/out/said")
    return {
        "said": text("/out/said"), "owner": [at.st_uid, at.st_gid, oct(at.st_mode)], "listed": text("/all/listed").split(),
        "all": sorted(os.listdir("/all")), "sub": sorted(os.listdir("/all/sub")), "pipefail": text("/all/pipefail"),
        "heredoc": text("/all/heredoc"), "inline": text("/all/inline.txt"), "blank": text("/out/n"), "user": text("/tmp/user"),
        "env": [os.environ["GREETING"], os.environ.get("WORD"), os.environ["STARTED_BY"]],
    }
    """
    result, _ = run(client, program(folder, image, body))
    assert result["said"] == f"hello world;default-world;hello world old form of world;$WORD[none][some];/src/deeper;{unique}"
    assert result["owner"] == [1000, 1001, "0o100640"]
    assert result["listed"] == ["a.txt", "b.txt", "d.txt"]
    assert result["all"] == sorted(
        ["a.txt", "b.txt", "d.txt", "said", "listed", "pipefail", "heredoc", "c.md", "sub", "keep.log", "one.cfg", "two.cfg", "inline.txt"]
    )
    assert result["sub"] == ["d.txt"] and result["pipefail"] == "pipefail"
    assert (result["heredoc"], result["inline"], result["blank"]) == ("line 1\nline 2", "for world", "N1")
    assert result["user"] == "nobody"
    assert result["env"] == ["again", None, "entry again"]


def test_variables_of_env(client, tmp_path, unique):
    """ENV: single quotes keep a dollar, all pairs of one line see the old values, ENV wins over ARG."""
    commands = [
        "ARG A=arg", "ENV B=$A C='$A' D=\\$A", "ENV B=new E=$B", "ENV A=env", f"RUN echo $A $B $C $E {unique} > /seen",
        "ENV PATH=/opt/own/bin:$PATH", "WORKDIR /${B}/x",
    ]  # fmt: skip
    image = f"modal.Image.debian_slim().dockerfile_commands({commands!r})"
    body = """
    return [open("/seen").read(), [os.environ[name] for name in "ABCDE"], os.environ["PATH"].split(":")[0], os.getcwd()]
    """
    (seen, values, first, folder), _ = run(client, program(tmp_path / "env", image, body))
    assert seen == f"env new $A arg {unique}\n"
    assert values == ["env", "new", "$A", "$A", "arg"]
    assert (first, folder) == ("/opt/own/bin", "/new/x")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("FRUM x", ["line 2", "FRUM", "ADD, ARG"]),
        ("COPY nowhere.txt /x", ["nowhere.txt"]),
        ("RUN --mount=type=ssh true", ["line 2", "ssh"]),
        ("RUN --network=host true", ["line 2", "--network=host"]),
        ("SHELL bash", ["line 2", 'SHELL ["program"']),
        ("ADD --checksum=sha256:00 https://127.0.0.1:9/x /x", ["127.0.0.1", "the machine itself"]),
        ("USER ghost\nRUN true", ["ghost", "/etc/passwd"]),
    ],
    ids=["instruction", "missing", "ssh", "host", "shell", "address", "user"],
)
def test_a_wrong_line_is_named_with_the_cure(token, sdk, line, parts):
    """What cannot be carried out fails the build with the line, the instruction and what to write instead."""
    app = sdk.App("wrong")
    image = sdk.Image.debian_slim().dockerfile_commands(line.split("\n"))
    with app.run(), pytest.raises((sdk.exception.ImageBuildError, sdk.exception.InvalidError, sdk.exception.Error)) as caught:
        image.build(app)
    for part in parts:
        assert part in str(caught.value)
