//! Builds that need no container.

use super::*;

#[tokio::test]
async fn copies_from_context_stages_images_and_inline_files() {
    let world = World::plain();
    let mut request = request(&[
        "FROM scratch AS files",
        "COPY . /all/",
        "FROM mini:1",
        "ENV PLACE=/opt",
        "WORKDIR $PLACE/app",
        "COPY --from=files --chmod=600 /all/a.txt b.txt",
        "COPY --chown=app a.txt <<note.txt ./",
        "at $PLACE",
        "note.txt",
        "COPY --from=mini:1 /etc/passwd /copy",
        "COPY --from=earlier /e /e",
        "CMD [\"x\"]",
    ]);
    request.context = Some(world.context(&[("a.txt", "A"), ("d/b.txt", "B")]));
    request.context_files = vec![("/a.txt".to_owned(), b"A2".to_vec())];
    let earlier = world.context(&[("e", "E")]);
    let record = LayerRecord { manifest: earlier, config: ImageConfig::default() };
    request.bases.insert("earlier".to_owned(), BaseImage { key: Digest::of(b"earlier"), record });
    let record = world.build(request).await.unwrap();

    assert_eq!(record.config.workdir.as_deref(), Some("/opt/app"));
    assert_eq!(record.metadata.workdir.as_deref(), Some("/opt/app"));
    for (name, text) in [("opt/app/b.txt", "A2"), ("opt/app/a.txt", "A2"), ("opt/app/note.txt", "at /opt\n"), ("e", "E")] {
        assert_eq!(world.text(&record, name), text, "{name}");
    }
    assert!(world.text(&record, "copy").starts_with("root:x:0:0"));
    let tree = world.tree(&record);
    let owner = |name: &str| tree.get(&Path::parse(name).unwrap()).map(|entry| (entry.uid, entry.mode)).unwrap();
    assert_eq!(owner("opt/app/b.txt"), (0, 0o600));
    assert_eq!(owner("opt/app/a.txt"), (1000, 0o644));
    assert_eq!(owner("e"), (7, 0o644), "copies from images keep their owner");
    assert!(tree.get(&Path::parse("all").unwrap()).is_none());
}

#[tokio::test]
async fn stages_that_nothing_needs_are_not_built() {
    let world = World::plain();
    let record = world.build(request(&["FROM nowhere:1 AS unused", "RUN x", "FROM scratch", "COPY <<a /", "1", "a"])).await.unwrap();
    assert_eq!(world.text(&record, "a"), "1\n");
}

#[tokio::test]
async fn errors_name_the_line_and_the_instruction() {
    let world = World::plain();
    for (commands, expected) in [
        (&["FROM scratch", "", "COPY nothing /"][..], "line 3: COPY nothing /\n\"nothing\" is not in the build context"),
        (
            &["FROM mini:1", "COPY --chown=ghost --from=mini:1 /etc /x"],
            "line 2: COPY --chown=ghost --from=mini:1 /etc /x\nuser \"ghost\" is not",
        ),
        (&["FROM mini:1", "WORKDIR /etc/passwd"], "line 2: WORKDIR /etc/passwd\n/etc/passwd is there and not a folder"),
        (&["FROM nowhere:1"], "line 1: FROM nowhere:1\nno source has the base image nowhere:1"),
        (&["FROM scratch", "ADD https://a.example/x.git /x"], "line 2: ADD https://a.example/x.git /x\nrepositories are not fetched"),
        (
            &["FROM scratch", "ADD http://127.0.0.1:1/x /x"],
            "line 2: ADD http://127.0.0.1:1/x /x\nhttp://127.0.0.1:1/x is not fetched: 127.0.0.1 leads",
        ),
        (&["FROM mini:1", "RUN x"], "image the recipe has commands to run, and this node runs no containers"),
        (&["FROM mini:1", "FORM x"], "line 2: FORM: unknown instruction"),
    ] {
        let error = world.build(request(commands)).await.unwrap_err();
        assert!(error.full_text().starts_with(expected), "{}", error.full_text());
        assert_eq!(error.kind(), crate::FailureKind::Build);
    }
}

#[tokio::test]
async fn triggers_of_the_base_come_first() {
    let world = World::plain();
    let base = world.build(request(&["FROM scratch", "ONBUILD COPY x /from-trigger", "ONBUILD ENV A=1"])).await.unwrap();
    assert_eq!(base.config.on_build.len(), 2);
    let mut next = request(&["FROM base", "ENV B=$A"]);
    next.context = Some(world.context(&[("x", "X")]));
    let record = LayerRecord { manifest: base.manifest, config: base.config.clone() };
    next.bases.insert("base".to_owned(), BaseImage { key: base.key, record });
    let image = world.build(next).await.unwrap();
    assert_eq!((world.text(&image, "from-trigger").as_str(), image.config.env["B"].as_str()), ("X", "1"));
    assert_eq!(image.config.on_build, [""; 0]);
}

#[tokio::test]
async fn equal_requests_share_a_build_that_outlives_its_clients() {
    let world = World::plain();
    let first = world.builder.get_or_start(request(&["FROM mini:1"]), None);
    let second = world.builder.get_or_start(request(&["FROM mini:1"]), None);
    assert!(Arc::ptr_eq(&first.0, &second.0));
    let key = first.key();
    drop((first, second));
    let found = world.builder.find(key).unwrap();
    assert!(found.wait().await.is_ok());
    let again = world.builder.get_or_start(request(&["FROM mini:1"]), None);
    assert!(!Arc::ptr_eq(&found.0, &again.0), "a finished build is not joined");
    again.wait().await.unwrap();
}

#[tokio::test]
async fn closing_ends_what_waits() {
    let world = World::plain();
    let handle = world.builder.get_or_start(request(&["FROM mini:1"]), None);
    world.builder.close();
    let outcome = handle.wait().await;
    assert!(matches!(outcome.as_ref().map_err(|error| &**error), Err(Error::Stopping { .. })), "{outcome:?}");
}

#[tokio::test]
async fn archives_are_unpacked_by_add_and_not_by_copy() {
    let world = World::plain();
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(1);
    builder.append_data(&mut header, "in/x", &b"X"[..]).unwrap();
    let archive = builder.into_inner().unwrap().finish().unwrap();
    let mut request = request(&["FROM scratch", "ADD a.tgz /added/", "COPY a.tgz /copied/", "ADD --unpack=false a.tgz /kept"]);
    request.context_files = vec![("/a.tgz".to_owned(), archive.clone())];
    let record = world.build(request).await.unwrap();
    assert_eq!(world.text(&record, "added/in/x"), "X");
    let tree = world.tree(&record);
    for name in ["copied/a.tgz", "kept"] {
        assert_eq!(tree.get(&Path::parse(name).unwrap()).unwrap().content_bytes(), archive.len() as u64);
    }
}
