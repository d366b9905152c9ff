//! `shoal token`: who may call, and what.

use clap::Subcommand;

use super::Common;
use super::admin::{ask, escaped};
use super::lists::{ago, print_json, print_table, seconds};
use crate::admin::{TokenLine, TokenMade, TokenPurpose, TokenWanted};

/// `shoal token …`
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token for clients; its secret is shown this once.
    #[command(
        after_help = "Examples:\n  shoal token create --label laptop\n  shoal token create --expires-in 30d --json\n  shoal token create --label ci --environment staging\n  shoal token create --label dashboard --purpose reader\n  shoal token create --node"
    )]
    Create {
        /// What you call it.
        #[arg(long, default_value = "")]
        label: String,
        /// What it is for.
        #[arg(long, value_enum, default_value_t)]
        purpose: TokenPurpose,
        /// The same as --purpose node: lets one node join, within a day unless --expires-in says otherwise.
        #[arg(long, conflicts_with = "purpose")]
        node: bool,
        /// The only environment that it may use, by name. What runs there is then kept to it, too.
        #[arg(long, visible_alias = "env", value_name = "NAME")]
        environment: Option<String>,
        /// When it ends: a number with s, m, h or d.
        #[arg(long, value_parser = seconds)]
        expires_in: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// List tokens, ended ones included, the newest last.
    #[command(visible_alias = "ls", after_help = "Examples:\n  shoal token list\n  shoal token list --json")]
    List(Common),
    /// End a token for good.
    #[command(after_help = "Examples:\n  shoal token revoke ak-…")]
    Revoke {
        /// The token's id.
        token_id: String,
        #[command(flatten)]
        common: Common,
    },
}

impl TokenCommand {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        match self {
            Self::Create { label, purpose, node, environment, expires_in, common } => {
                let purpose = if node { TokenPurpose::Node } else { purpose };
                let wanted = TokenWanted { label, purpose, environment, expires_in_seconds: expires_in };
                let made: TokenMade = ask(&common, "POST", "/tokens", &wanted)?;
                if common.json {
                    print_json(&made)?;
                } else if let Some(join) = made.join {
                    println!("To let one node join, run this on it within a day, or as long as --expires-in says:\n  {join}");
                } else {
                    println!("token id      {}\ntoken secret  {}", made.token_id, made.token_secret);
                    println!(
                        "\nThe secret is not shown again. To use it:\n  modal token set --token-id {} --token-secret {}",
                        made.token_id, made.token_secret
                    );
                    if let Some(connect) = made.connect {
                        println!("From a machine elsewhere, by mutual TLS and past the loss of any node:\n  {connect}");
                    }
                    if let Some(environment) = wanted.environment {
                        println!("It is good for environment '{environment}' alone: use it with MODAL_ENVIRONMENT={environment}");
                    }
                }
            }
            Self::List(common) => {
                let tokens: Vec<TokenLine> = ask(&common, "GET", "/tokens", &())?;
                if common.json {
                    print_json(&tokens)?;
                } else {
                    print_table(["TOKEN", "LABEL", "PURPOSE", "ENVIRONMENT", "STATE", "EXPIRES", "CREATED"], tokens.into_iter().map(row));
                }
            }
            Self::Revoke { token_id, common } => {
                let () = ask(&common, "DELETE", &format!("/tokens/{}", escaped(&token_id)), &())?;
                if !common.json {
                    println!("token {token_id} is revoked");
                }
            }
        }
        Ok(0)
    }
}

fn row(line: TokenLine) -> [String; 7] {
    let environment = line.environment.unwrap_or_else(|| "(all)".to_owned());
    let expires = line.expires_ms.map_or_else(|| "never".to_owned(), crate::api::time);
    [line.token_id, line.label, line.purpose, environment, line.state, expires, ago(line.created_ms)]
}
