//! `shoal image`: which images there are, how large they are, who needs them; and their end.

use clap::Subcommand;

use super::Common;
use super::admin::{ask, escaped};
use super::lists::{ago, print_json, print_table};
use super::store::{ask_long, size};
use crate::admin::{ImageLine, WarmLine, WarmWanted};

/// `shoal image …`
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List images, the newest first; failed builds too.
    #[command(visible_alias = "ls", after_help = "Examples:\n  shoal image list\n  shoal image list --json")]
    List(Common),
    /// Bring all of an image to a node, so that its first start there reads nothing from others.
    #[command(after_help = "Examples:\n  shoal image warm im-…\n  shoal image warm im-… --node gpu-1")]
    Warm {
        /// Its id.
        #[arg(value_name = "IMAGE")]
        image: String,
        /// The id or name of the node [default: the one that is asked]
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Remove images that no function needs. Their space comes back with the next `shoal store gc`.
    #[command(visible_alias = "rm", after_help = "Examples:\n  shoal image remove im-…\n  shoal image rm im-… im-…")]
    Remove {
        /// Their ids.
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
}

impl ImageCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        match self {
            Self::List(common) => list(&common)?,
            Self::Warm { image, node, common } => return warm(&common, &image, node),
            Self::Remove { images, common } => {
                for image in images {
                    let () = ask(&common, "DELETE", &format!("/images/{}", escaped(&image)), &())?;
                    if !common.json {
                        println!("image {image} is removed");
                    }
                }
            }
        }
        Ok(0)
    }
}

fn warm(common: &Common, image: &str, node: Option<String>) -> anyhow::Result<i32> {
    let done: WarmLine = ask_long(common, &format!("/images/{}/warm", escaped(image)), &WarmWanted { node })?;
    if common.json {
        print_json(&done)?;
    } else {
        let WarmLine { image_id, node, chunks, bytes, .. } = &done;
        println!("{chunks} chunks ({}) of image {image_id} came to node {node}", size(*bytes));
        if !done.whole {
            println!("{} are still lacking, and no node has them that could be asked", done.lacking);
            done.why.iter().for_each(|why| println!("  {why}"));
        }
    }
    Ok(i32::from(!done.whole))
}

fn list(common: &Common) -> anyhow::Result<()> {
    let images: Vec<ImageLine> = ask(common, "GET", "/images", &())?;
    if common.json {
        return print_json(&images);
    }
    let row = |image: ImageLine| {
        let used = image.last_used_ms.map_or_else(|| "-".to_owned(), ago);
        let users = users(&image);
        let whole = if image.whole_on.is_empty() { "-".to_owned() } else { image.whole_on.join(" ") };
        [image.image_id, image.state, size(image.size_bytes), image.entries.to_string(), whole, used, users, ago(image.built_ms)]
    };
    print_table(["IMAGE", "STATE", "SIZE", "FILES", "WHOLE ON", "LAST USED", "NEEDED BY", "BUILT"], images.into_iter().map(row));
    Ok(())
}

/// Names who needs an image, in short.
fn users(image: &ImageLine) -> String {
    let first = image.used_by.first().map(|user| format!("{}.{}", user.app, user.function));
    match (first, image.used_by.len()) {
        (None, _) => "-".to_owned(),
        (Some(first), 1) => first,
        (Some(first), more) => format!("{first} and {} more", more - 1),
    }
}
