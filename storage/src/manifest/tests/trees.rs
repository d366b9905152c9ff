//! Trees in memory: links, symbolic links, trees over trees.

use super::*;

#[test]
fn the_first_name_has_the_content_whatever_the_order() {
    let objects = Memory::default();
    let one = tree("b=x a==b c==a", &objects);
    let other = tree("c=x b==c a==b", &objects);
    assert_eq!(one, other);
    assert_tree(&one, "a=x b==a c==a", &objects);
}

#[test]
fn a_file_lives_as_long_as_one_of_its_names() {
    let objects = Memory::default();
    let mut all = tree("d/a=x@4755 d/b==d/a e/c==d/b", &objects);
    all.remove(&p("d/a")).unwrap();
    assert_tree(&all, "d/ d/b=x@4755 e/ e/c==d/b", &objects);
    assert_eq!(all.get(&p("e/c")).unwrap().mode, 0o4755);
    all.remove(&p("d")).unwrap();
    assert_tree(&all, "e/ e/c=x@4755", &objects);
    assert_eq!(all, tree("e/c=x@4755", &objects));
}

#[test]
fn a_new_file_at_one_name_leaves_the_others() {
    let objects = Memory::default();
    let mut all = tree("a=x b==a c==a", &objects);
    put_line(&mut all, "a=new", &objects).unwrap();
    assert_tree(&all, "a=new b=x c==b", &objects);
}

#[test]
fn links_that_cannot_be_are_refused() {
    let objects = Memory::default();
    let mut all = tree("d/f=x", &objects);
    for (line, why) in [("a==nowhere", "not in the tree"), ("a==d", "is a directory"), ("d==d/f", "would replace")] {
        let error = put_line(&mut all, line, &objects).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    put_line(&mut all, "d/f==d/f", &objects).unwrap();
    assert_tree(&all, "d/ d/f=x", &objects);
}

#[test]
fn an_edit_reaches_all_names_and_only_attributes() {
    let objects = Memory::default();
    let mut all = tree("a=x b==a", &objects);
    all.edit(|_, attributes| (*attributes.uid, *attributes.mode) = (7, 0o177_777));
    assert!(all.iter().all(|(_, entry)| entry.uid == 7 && entry.mode == 0o7777));
    let digest = all.write(&objects).unwrap();
    assert_eq!(Tree::read(&objects, &digest).unwrap(), all);
}

#[test]
fn a_path_through_a_link_stays_inside() {
    let objects = Memory::default();
    let mut all = tree("usr/lib/ lib->usr/lib abs->/usr/lib up->../../../../usr/lib a->b b->a lib64->lib", &objects);
    for line in ["lib/one=1", "abs/two=2", "up/three=3", "lib64/new/four=4"] {
        put_line(&mut all, line, &objects).unwrap();
    }
    assert_eq!(all.follow(&p("lib64/one")).unwrap(), p("usr/lib/one"));
    assert_eq!(all.locate(&p("lib64")).unwrap(), p("lib64"));
    assert!(matches!(put_line(&mut all, "a/x=1", &objects), Err(Error::TooManySymlinks { .. })));
    let expected = "a->b abs->/usr/lib b->a lib->usr/lib lib64->lib up->../../../../usr/lib usr/ usr/lib/ \
                    usr/lib/new/ usr/lib/new/four=4 usr/lib/one=1 usr/lib/three=3 usr/lib/two=2";
    assert_tree(&all, expected, &objects);
}

#[test]
fn the_upper_tree_wins_and_directories_merge() {
    let objects = Memory::default();
    let mut image = tree("tmp/@1777 tmp/old=1 etc=file x/y/z=1 lib->usr/lib usr/lib/a=1 dangling->none/there", &objects);
    let mounts = tree("tmp/new=2 etc/hosts=2 x/y=2 lib/b=2 lib/c==lib/b dangling/d=2", &objects);
    image.overlay(&mounts).unwrap();
    let expected = "dangling/ dangling/d=2 etc/ etc/hosts=2 lib->usr/lib tmp/@1777 tmp/new=2 tmp/old=1 \
                    usr/ usr/lib/ usr/lib/a=1 usr/lib/b=2 usr/lib/c==usr/lib/b x/ x/y=2";
    assert_tree(&image, expected, &objects);
}

#[test]
fn a_part_is_copied_with_its_links() {
    let objects = Memory::default();
    let stage = tree("a=x out/b==a out/c==a out/s->b lib->out", &objects);
    let part = stage.subtree(&p("lib")).unwrap();
    assert!(matches!(part.root().kind, Kind::Symlink { .. }));
    let part = stage.subtree(&stage.follow(&p("lib")).unwrap()).unwrap();
    assert_tree(&part, "b=x c==b s->b", &objects);

    let mut image = tree("bin->usr/bin usr/bin/", &objects);
    image.graft(&p("bin/tools"), &part).unwrap();
    image.graft(&p("opt/one"), &stage.subtree(&p("lib/c")).unwrap()).unwrap();
    let expected = "bin->usr/bin opt/ opt/one=x usr/ usr/bin/ usr/bin/tools/ usr/bin/tools/b=x \
                    usr/bin/tools/c==usr/bin/tools/b usr/bin/tools/s->b";
    assert_tree(&image, expected, &objects);
    assert!(matches!(stage.subtree(&p("none")), Err(Error::NotFound { .. })));
}

#[test]
fn children_are_those_of_one_directory() {
    let objects = Memory::default();
    let all = tree("a/b/c=1 a/d=1 a-b=1 e=1", &objects);
    let names = |path| all.children(&p(path)).map(|(path, _)| path.to_string()).collect::<Vec<_>>();
    assert_eq!((names("a"), names("")), (vec!["/a/b".into(), "/a/d".into()], vec!["/a".into(), "/a-b".into(), "/e".into()]));
}
