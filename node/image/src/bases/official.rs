//! What makes a Debian root file system behave like the official image: settings of apt and dpkg, and the config.
//!
//! Without these files a package installation brings documentation, keeps its archives and syncs every file: the same
//! compiler takes a third more space.

use std::collections::BTreeMap;

use crate::config::{DEFAULT_PATH, ImageConfig};

/// dpkg options of the slim images: documentation stays out, licences come in.
pub(super) const SLIM_DPKG: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/linda/*",
    "path-exclude=/usr/share/lintian/overrides/*",
    "path-exclude=/usr/share/locale/*",
];

/// A file to add to the root file system.
pub(super) struct Added {
    pub(super) path: &'static str,
    pub(super) mode: u32,
    pub(super) content: &'static str,
}

/// Files of the official images.
pub(super) const FILES: [Added; 8] = [
    Added {
        path: "etc/apt/apt.conf.d/docker-clean",
        mode: 0o644,
        content: "DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true\"; };\n\
                  APT::Update::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true\"; };\n\
                  Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n",
    },
    Added { path: "etc/apt/apt.conf.d/docker-no-languages", mode: 0o644, content: "Acquire::Languages \"none\";\n" },
    Added { path: "etc/apt/apt.conf.d/docker-gzip-indexes", mode: 0o644, content: "Acquire::GzipIndexes \"true\";\n" },
    Added {
        path: "etc/apt/apt.conf.d/docker-autoremove-suggests",
        mode: 0o644,
        content: "Apt::AutoRemove::SuggestsImportant \"false\";\n",
    },
    Added { path: "etc/dpkg/dpkg.cfg.d/docker-apt-speedup", mode: 0o644, content: "force-unsafe-io\n" },
    // Services are not started in containers.
    Added { path: "usr/sbin/policy-rc.d", mode: 0o755, content: "#!/bin/sh\nexit 101\n" },
    // The node gives every container its own.
    Added { path: "etc/resolv.conf", mode: 0o644, content: "" },
    Added { path: "etc/hostname", mode: 0o644, content: "" },
];

/// The config of a Debian image.
pub(super) fn debian_config() -> ImageConfig {
    ImageConfig {
        env: BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]),
        cmd: Some(vec!["bash".to_owned()]),
        ..ImageConfig::default()
    }
}

/// The config of a Python image.
pub(super) fn python_config(version: &str) -> ImageConfig {
    let env = [
        ("PATH", "/usr/local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LANG", "C.UTF-8"),
        ("PYTHON_VERSION", version),
    ];
    ImageConfig {
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        cmd: Some(vec!["python3".to_owned()]),
        ..ImageConfig::default()
    }
}
