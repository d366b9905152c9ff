"""Holds the workspace against the table of who may depend on whom, and against a list of crates it must not have.

    scripts/lib/walls.py            prints each wrong edge; exit code 1 when there is one

The table says more than Cargo can: a crate that is missing here is a crate nobody decided about, and
that is an error too. It reads `cargo metadata` and `cargo tree` and changes nothing.
"""

import json
import subprocess
import sys

# Crate -> the crates of this workspace that it may name, in dependencies of any kind.
MAY_USE = {
    "shoal-state": set(),
    "shoal-proto": set(),
    "shoal-storage": {"shoal-state"},
    "shoal-gpu": {"shoal-state"},
    "shoal-fs": {"shoal-state", "shoal-storage"},
    "shoal-raft": {"shoal-state", "shoal-storage"},
    "shoal-runtime": {"shoal-state", "shoal-storage", "shoal-fs"},
    "shoal-calls": {"shoal-state", "shoal-storage", "shoal-scheduler"},
    "shoal-peer": {"shoal-state"},
    "shoal-scheduler": {"shoal-state", "shoal-gpu"},
    "shoal-timing": {"shoal-state"},
    "shoal-members": {"shoal-state", "shoal-raft"},
    "shoal-image": {"shoal-state", "shoal-storage", "shoal-fs", "shoal-runtime"},
    "shoal-worker": {"shoal-state", "shoal-storage", "shoal-fs", "shoal-gpu", "shoal-runtime"},
}
# These stand on top and may use all of the above.
ON_TOP = {"shoal", "shoal-tests", "shoal-bench", "shoal-simulation"}
# What tests are written with: each crate may have it among its dev-dependencies, and nowhere else. It knows none of ours.
FOR_TESTS = {"shoal-stories"}

# Crates from outside whose types only one crate of ours may see.
ONLY_IN = {
    "openraft": {"shoal-raft"},
    "sled": {"shoal-storage"},
    "fuser": {"shoal-fs"},
    "oci-client": {"shoal-image"},
    "quinn": {"shoal-peer"},
    # The copy that transfers are measured against needs a certificate too.
    "rcgen": {"shoal-peer", "shoal-bench"},
    "croner": {"shoal-timing"},
    "nvml-wrapper": {"shoal-gpu"},
    "tonic": {"shoal-proto", "shoal", "shoal-tests", "shoal-bench"},
    "axum": {"shoal"},
    "clap": {"shoal", "shoal-tests", "shoal-bench"},
}
# The state machine is pure: nothing that waits, speaks or asks the time.
NOT_IN_STATE = {"tokio", "futures", "rand", "jiff", "reqwest", "hyper", "rustix", "nix", "libc", "parking_lot", "tempfile"}

# They need more than gcc to build, or a second TLS library.
NOT_AT_ALL = {"aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "cmake", "bindgen", "protoc-bin-vendored"}


def cargo(*arguments: str) -> str:
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def wrong_edges() -> list[str]:
    """Returns a sentence for each dependency that the tables above forbid."""
    packages = json.loads(cargo("metadata", "--format-version", "1", "--no-deps"))["packages"]
    ours = {package["name"] for package in packages}
    wrong = [f"{name} is in no table of scripts/lib/walls.py" for name in sorted(ours - MAY_USE.keys() - ON_TOP - FOR_TESTS)]
    for package in packages:
        name = package["name"]
        normal = {one["name"] for one in package["dependencies"] if one["kind"] != "dev"}
        every = {one["name"] for one in package["dependencies"]}
        allowed = ours if name in ON_TOP else MAY_USE.get(name, set())
        wrong += [f"{name} must not depend on {other}" for other in sorted((every & ours) - allowed - FOR_TESTS - {name})]
        wrong += [f"{name} must not depend on {other}: it is for tests alone" for other in sorted(normal & FOR_TESTS)]
        wrong += [f"{name} must not name {other}: only {', '.join(sorted(who))} may" for other, who in ONLY_IN.items() if other in normal and name not in who]
        if name == "shoal-state":
            wrong += [f"{name} is pure and must not depend on {other}" for other in sorted(normal & NOT_IN_STATE)]
    return wrong


def unwanted() -> list[str]:
    """Returns a sentence for each crate of NOT_AT_ALL that this target's build would compile."""
    listed = cargo("tree", "--workspace", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}")
    names = {line.split()[0] for line in listed.splitlines() if line.strip()}
    return [f"{name} is in the tree: `cargo tree --workspace --invert {name}` says who brought it" for name in sorted(names & NOT_AT_ALL)]


def main() -> int:
    wrong = wrong_edges() + unwanted()
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if not wrong:
        print("dependencies point the right way, and nothing unwanted is among them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
