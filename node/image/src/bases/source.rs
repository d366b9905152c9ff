//! Python from the distribution's source, for a series that the machine lacks: as a recipe for the builder.
//!
//! It takes about five minutes on two cores and is kept. The result has the shape of the other Python images: an
//! interpreter under `/usr/local` with the pip it brings.

use crate::error::{Error, Result};

use super::reference::PythonTag;

/// Which suite has the source of a series.
const SOURCES: [(&str, &str); 5] = [("3.7", "buster"), ("3.9", "bullseye"), ("3.11", "bookworm"), ("3.13", "trixie"), ("3.14", "forky")];

/// What an interpreter is built with.
const BUILD_PACKAGES: &str = "xz-utils gcc g++ make pkg-config libbz2-dev libffi-dev libgdbm-dev liblzma-dev libncurses-dev \
    libreadline-dev libsqlite3-dev libssl-dev uuid-dev zlib1g-dev libexpat1-dev";

/// Returns the recipe of a Python image.
pub(super) fn recipe(tag: &PythonTag) -> Result<Vec<String>> {
    let plain = tag.series.trim_end_matches('t');
    let threads = if tag.series.ends_with('t') { " --disable-gil" } else { "" };
    let Some((_, suite)) = SOURCES.iter().find(|(series, _)| *series == plain) else {
        let known: Vec<_> = SOURCES.iter().map(|(series, _)| *series).collect();
        let why = format!(
            "needs an interpreter of Python {plain}: this machine has none under pyenv, /usr/local or uv, and the distribution has \
             the source of {} only. Install one and name its folder in images.python_dirs",
            known.join(", ")
        );
        return Err(Error::NotAnImage { reference: format!("python:{}", tag.series), why });
    };
    let (target, series) = (&tag.debian.suite, &tag.series);
    let lines = [
        format!("FROM debian:{target}-slim AS build"),
        format!("RUN apt-get update && apt-get install -y --no-install-recommends {BUILD_PACKAGES}"),
        // The same archive, another suite: sources only, so that no package of it gets in. Of those the original alone: the
        // distribution's changes take pip away.
        format!(
            "RUN sed -n 's/^deb \\(.*\\) {target} \\(.*\\)$/deb-src \\1 {suite} \\2/p' /etc/apt/sources.list \
             > /etc/apt/sources.list.d/python-source.list && apt-get update && mkdir -p /source/tree && cd /source \
             && apt-get source --download-only python{plain} && tar -xf python{plain}_*.orig.tar.* -C tree --strip-components=1"
        ),
        format!(
            "RUN cd /source/tree && ./configure --prefix=/usr/local --enable-shared --with-ensurepip=install --disable-test-modules \
             LDFLAGS='-Wl,-rpath,\\$$ORIGIN/../lib'{threads} && make -j$(nproc)"
        ),
        "RUN cd /source/tree && make install".to_owned(),
        format!(
            "RUN cd /usr/local && find . -depth \\( -name __pycache__ -o -name test -o -name tests -o -name idle_test -o -name '*.a' \\) \
             -exec rm -rf {{}} + && strip --strip-unneeded bin/python{series} lib/*.so* lib/python{series}/lib-dynload/*.so; \
             ln -sf python{series} bin/python3; ln -sf python3 bin/python; ln -sf pip3 bin/pip; \
             find lib bin -type f -exec ldd {{}} + 2>/dev/null | sed -n 's/.*=> \\(\\/[^ ]*\\) .*/\\1/p' | sort -u \
             | grep -v /usr/local | xargs -r realpath | sed 'p;s,^/usr,,' | xargs -r dpkg-query --search 2>/dev/null | sed 's/:.*//' | sort -u > /needed"
        ),
        format!("FROM debian:{target}-slim"),
        "COPY --from=build /needed /needed".to_owned(),
        "RUN apt-get update && apt-get install -y --no-install-recommends $(cat /needed) && rm -rf /needed /var/lib/apt/lists/*".to_owned(),
        "COPY --from=build /usr/local/ /usr/local/".to_owned(),
        "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8".to_owned(),
        "CMD [\"python3\"]".to_owned(),
    ];
    Ok(lines.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bases::DebianTag;
    use crate::recipe::Recipe;

    #[test]
    fn the_recipe_is_one() {
        let debian = DebianTag { suite: "bookworm".to_owned(), slim: true };
        let tag = |series: &str| PythonTag { series: series.to_owned(), exact: None, debian: debian.clone() };
        let parsed = Recipe::parse(&recipe(&tag("3.13t")).unwrap()).unwrap();
        assert_eq!(parsed.stages.len(), 2);
        let error = recipe(&tag("3.12")).unwrap_err().to_string();
        assert!(error.contains("the source of 3.7, 3.9, 3.11, 3.13, 3.14 only"), "{error}");
    }
}
