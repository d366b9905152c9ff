//! Tokens: which there are, and which are good no more.

use super::{Applied, State};
use crate::model::{Token, TokenLimits, TokenPurpose};
use crate::{Event, Refused, Timestamp, TokenId};

impl State {
    pub(super) fn create_token(&mut self, id: TokenId, token: &Token) -> Applied {
        if let TokenPurpose::Limited(TokenLimits { environment: Some(environment), .. }) = token.purpose
            && !self.environments.contains_key(&environment)
        {
            return Err(Refused::NoEnvironment { id: environment });
        }
        if !self.tokens.contains_key(&id) {
            self.tokens.insert(id, token.clone());
        }
        Ok(vec![Event::TokensChanged])
    }

    pub(super) fn revoke_token(&mut self, id: TokenId, at: Timestamp) -> Applied {
        let token = self.tokens.get_mut(&id).ok_or(Refused::NoToken { id })?;
        token.revoked.get_or_insert(at);
        Ok(vec![Event::TokensChanged])
    }
}
