use std::borrow::Cow;

use prost::Message as _;
use shoal_proto::methods::served_methods;
use shoal_proto::modal_client as pb;
use shoal_state::model::{App, AppState, Environment, Function, Task, Token};
use shoal_state::{BootId, Command, Digest, NodeId, Timestamp, TokenId};

use super::*;

fn environment(state: &mut State, bits: u128, name: &str) -> EnvironmentId {
    let id = EnvironmentId::from_random(bits);
    state.apply(&Command::CreateEnvironment { environment: Environment::new(id, name, Timestamp(0)) }).unwrap();
    id
}

fn token(state: &mut State, bits: u128, purpose: TokenPurpose) -> Identity {
    let id = TokenId::from_random(bits);
    let (label, created) = (String::new(), Timestamp(0));
    let token = Token { secret_hash: Digest::of(b""), purpose, label, created, expires: None, revoked: None };
    state.apply(&Command::CreateToken { id, token }).unwrap();
    Identity::Client(id)
}

fn limited(environment: EnvironmentId) -> TokenPurpose {
    TokenPurpose::Limited(TokenLimits { environment: Some(environment), reads_only: false })
}

const READER: TokenPurpose = TokenPurpose::Limited(TokenLimits { environment: None, reads_only: true });

/// An app with one function and one task in an environment.
fn app(state: &mut State, bits: u128, environment: EnvironmentId) -> (AppId, FunctionId, TaskId) {
    let (id, function, task) = (AppId::from_random(bits), FunctionId::from_random(bits), TaskId::from_random(bits));
    state.apps.insert(id, App::new(environment, AppState::Ephemeral, Timestamp(0)));
    state.functions.insert(function, Function::new(id, "f", Timestamp(0)));
    let running = Task::new((function, id), (NodeId::from_random(1), BootId::from_random(1)), Timestamp(0));
    state.tasks.insert(task, running);
    (id, function, task)
}

fn state() -> (State, EnvironmentId, EnvironmentId) {
    let mut state = State::default();
    state.apply(&Command::SetVersion { version: shoal_state::VERSION_KNOWN }).unwrap();
    let (main, other) = (environment(&mut state, 1, "main"), environment(&mut state, 2, "staging"));
    (state, main, other)
}

#[test]
fn every_method_of_the_schema_has_a_rule() {
    let without: Vec<_> = served_methods().iter().filter(|path| rule(path.rsplit('/').next().unwrap_or_default()).is_none()).collect();
    assert!(without.is_empty(), "api/policy/rules.rs says nothing of {without:?}");
}

#[test]
fn a_method_without_a_rule_is_closed_to_all() {
    let (mut state, ..) = state();
    let client = token(&mut state, 1, TokenPurpose::Client);
    for identity in [client, Identity::Task(TaskId::from_random(1))] {
        assert!(matches!(admit(&state, &Room::plenty(), "WorkspaceDelete", identity), Err(Error::Unimplemented(_))));
    }
}

#[test]
fn clients_and_containers_keep_to_their_own() {
    let (mut state, ..) = state();
    let (client, task) = (token(&mut state, 1, TokenPurpose::Client), Identity::Task(TaskId::from_random(1)));
    let denied = |method, identity| matches!(admit(&state, &Room::plenty(), method, identity), Err(Error::Denied(_)));
    for method in ["FunctionGetInputs", "FunctionPutOutputs", "ContainerLog", "TaskResult"] {
        assert!(denied(method, client) && !denied(method, task), "{method}");
    }
    for method in ["AppStop", "TokenInfoGet", "EnvironmentDelete"] {
        assert!(denied(method, task) && !denied(method, client), "{method}");
    }
    assert!(!denied("FunctionMap", client) && !denied("FunctionMap", task));
}

#[test]
fn a_reader_changes_nothing() {
    let (mut state, ..) = state();
    let reader = token(&mut state, 1, READER);
    for path in served_methods() {
        let method = path.rsplit('/').next().unwrap_or_default();
        let open = admit(&state, &Room::plenty(), method, reader).is_ok();
        assert_eq!(open, matches!(rule(method), Some((Who::Either | Who::Client, Does::Look))), "{method}");
    }
    let said = admit(&state, &Room::plenty(), "AppCreate", reader).unwrap_err().to_string();
    assert!(said.contains("purpose reader") && said.contains("shoal token create"), "{said}");
    let asks =
        |kind: pb::ObjectCreationType| pb::AppGetOrCreateRequest { object_creation_type: kind.into(), ..Default::default() }.creates();
    assert!(asks(pb::ObjectCreationType::CreateIfMissing) && !asks(pb::ObjectCreationType::Unspecified));
}

#[test]
fn every_kind_of_thing_is_found_where_it_is() {
    let (mut state, main, other) = state();
    let (app_id, function, task) = app(&mut state, 7, other);
    let text = |id: &dyn std::fmt::Display| Cow::Owned(id.to_string());
    let things = [Thing::App(text(&app_id)), Thing::Function(text(&function)), Thing::Task(text(&task))];
    for thing in &things {
        assert_eq!(place_in(&state, thing, None), Some(Place::In(other)), "{thing:?}");
    }
    assert_eq!(place_in(&state, &Thing::Call("fc-x".into()), Some(function)), Some(Place::In(other)));
    assert_eq!(place_in(&state, &Thing::App("no app".into()), None), None);
    let identity = token(&mut state, 1, limited(main));
    let said = outside(&state, identity, main, &things[1], Place::In(other)).to_string();
    assert!(said.contains("limited to environment 'main'") && said.contains("which is in 'staging'"), "{said}");
}

#[test]
fn a_request_names_all_that_it_uses() {
    let function = pb::Function { secret_ids: vec!["st-inner".to_owned()], ..Default::default() };
    let ranked = pb::function_data::RankedFunction { rank: 0, function: Some(function.encode_to_vec().into()) };
    let data = pb::FunctionData { ranked_functions: vec![ranked], ..Default::default() };
    let create = pb::FunctionCreateRequest {
        app_id: "ap-1".to_owned(),
        function_data: Some(data.encode_to_vec().into()),
        function: Some(pb::Function { secret_ids: vec!["st-outer".to_owned()], ..Default::default() }.encode_to_vec().into()),
        ..Default::default()
    };
    let named = create.names();
    for thing in [Thing::App("ap-1".into()), Thing::Secret("st-inner".into()), Thing::Secret("st-outer".into())] {
        assert!(named.contains(&thing), "{thing:?} is not in {named:?}");
    }
    let publish = pb::AppPublishRequest {
        function_ids: [("f".to_owned(), "fu-1".to_owned())].into(),
        class_ids: [("C".to_owned(), "cs-1".to_owned())].into(),
        ..Default::default()
    };
    assert!(publish.names().contains(&Thing::Function("fu-1".into())) && publish.names().contains(&Thing::Class("cs-1".into())));
}

#[test]
fn containers_are_limited_only_where_a_token_is() {
    let (mut state, main, other) = state();
    let (.., in_main) = app(&mut state, 1, main);
    let (.., in_other) = app(&mut state, 2, other);
    token(&mut state, 1, TokenPurpose::Client);
    token(&mut state, 2, TokenPurpose::Limited(TokenLimits { environment: Some(main), reads_only: true }));
    for task in [in_main, in_other] {
        assert_eq!(limits(&state, Identity::Task(task)), TokenLimits::default());
    }
    token(&mut state, 3, limited(other));
    // Revoked or not: what it brought may still run.
    state.apply(&Command::RevokeToken { id: TokenId::from_random(3), at: Timestamp(1) }).unwrap();
    assert_eq!(limits(&state, Identity::Task(in_main)).environment, None);
    assert_eq!(limits(&state, Identity::Task(in_other)).environment, Some(other));
}
