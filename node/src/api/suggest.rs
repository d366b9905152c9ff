//! Names that somebody may have meant who named something that is not there.

use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::object_suggest_request::ObjectSuggestKind as Kind;

use super::error::Error;
use super::{Api, Caller, environment};

/// How many names are told at most.
const NAMES_MAX: usize = 10;
/// Names are compared up to this length, in characters.
const LENGTH_MAX: usize = 100;

pub(super) async fn names(api: &Api, _caller: &Caller, request: pb::ObjectSuggestRequest) -> Result<pb::ObjectSuggestResponse, Error> {
    let kind = request.kind();
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let deployed = state.apps.values().filter(|app| app.environment == environment && app.stopped.is_none() && !app.name.is_empty());
    let there: Vec<(&str, &str)> = match kind {
        Kind::App => deployed.map(|app| ("", app.name.as_str())).collect(),
        Kind::Function => deployed.flat_map(|app| app.layout.functions.keys().map(|tag| (app.name.as_str(), tag.as_str()))).collect(),
        Kind::Server | Kind::Unspecified => Vec::new(),
    };
    let most = usize::try_from(request.limit).unwrap_or(usize::MAX).min(NAMES_MAX);
    let like = like(&request.query, there, most).into_iter();
    let suggestion = |(app, name): (&str, &str)| pb::ObjectSuggestion { app_name: app.to_owned(), object_name: name.to_owned() };
    Ok(pb::ObjectSuggestResponse { suggestions: like.map(suggestion).collect() })
}

/// Returns the names that are like what was asked for, the likest first: with their app where it was asked for with one.
fn like<'a>(query: &str, there: Vec<(&'a str, &'a str)>, most: usize) -> Vec<(&'a str, &'a str)> {
    let asked = query.replace("::", "/").replacen('.', "/", usize::from(!query.contains('/'))).to_lowercase();
    let own = asked.rsplit('/').next().unwrap_or(&asked).to_owned();
    let far = |(app, name): (&str, &str)| {
        let (name, whole) = (name.to_lowercase(), format!("{app}/{name}").trim_start_matches('/').to_lowercase());
        let by_name = far_apart(&own, &name);
        // Who named an app meant this name of it, or one of another that is nearly as it was written.
        if asked.contains('/') { far_apart(&asked, &whole).or(by_name.map(|far| far + 10)) } else { by_name.or(far_apart(&asked, &whole)) }
    };
    let mut found: Vec<(usize, (&str, &str))> = there.into_iter().filter_map(|one| Some((far(one)?, one))).collect();
    found.sort();
    found.into_iter().take(most).map(|(_, one)| one).collect()
}

/// Says how far two names are apart, in characters that were left out, put in, changed or swapped; none where they are not alike: more than
/// a third of the shorter one is wrong, and it does not begin the longer one.
fn far_apart(one: &str, other: &str) -> Option<usize> {
    let [one, other] = [one, other].map(|name| name.chars().take(LENGTH_MAX).collect::<Vec<char>>());
    let mut rows = vec![(0..=other.len()).collect::<Vec<usize>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let changed = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    let far = rows[one.len()][other.len()];
    let shorter = one.len().min(other.len());
    let begins = shorter >= 3 && one[..shorter] == other[..shorter];
    (far <= shorter.div_ceil(3) && shorter > 0 || begins).then_some(far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_alike_when_little_is_wrong_or_one_begins_the_other() {
        assert_eq!(far_apart("trian", "train"), Some(1), "two are swapped");
        assert_eq!(far_apart("emb", "embed"), Some(2));
        assert_eq!((far_apart("train", "serve"), far_apart("ab", "xy"), far_apart("", "a")), (None, None, None));
    }

    #[test]
    fn the_likest_name_comes_first_and_what_was_named_with_its_app_is_looked_for_there() {
        let there = vec![("shop", "train"), ("shop", "trains"), ("lab", "train"), ("lab", "serve")];
        assert_eq!(like("shop/trian", there.clone(), 2), [("shop", "train"), ("shop", "trains")]);
        assert_eq!(like("shop::trian", there.clone(), 9).first(), Some(&("shop", "train")));
        assert_eq!(like("train", there.clone(), 9), [("lab", "train"), ("shop", "train"), ("shop", "trains")]);
        assert!(like("nothing", there, 9).is_empty());
        assert_eq!(like("shpo", vec![("", "shop"), ("", "lab")], 4), [("", "shop")]);
    }
}
