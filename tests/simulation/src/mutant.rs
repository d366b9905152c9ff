//! Known bugs, to be put back one at a time: an invariant that no bug breaks says nothing.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A home counts a record as kept by others once it is sent.
    AckedWhenSent,
    /// The disk says that it has synced what it has not.
    LyingDisk,
    /// A new home does not ask what tasks run.
    AsksNobodyWhatRuns,
    /// A leader plans before it has all that was decided before its term.
    PlansBeforeTheBarrier,
    /// A leader takes for lost whom it has not heard since it leads.
    NewLeaderHearsNobody,
    /// A home answers how things stand without asking whether it is one still.
    AnswersUnconfirmed,
    /// A client that tries again gives its request another key.
    TriesAgainByAnotherKey,
    /// A reader moves its cursor though it was told nothing.
    CursorRunsAhead,
    /// A reader of what a call yields moves its cursor though it was told nothing.
    DataCursorRunsAhead,
    /// A schedule's call gets another id each time it is made.
    FiringHasNoId,
    /// A container does not ask which of its inputs are cancelled.
    DeafToCancels,
    /// A client takes a cancellation for done once a node has heard of it.
    CancelledWhenAsked,
    /// The container of rank 0 of a gang takes inputs though the others do not wait for them.
    GangWaitsForNobody,
    /// A node that is cut off lets its containers of gangs go on.
    GangGoesOnAlone,
    /// What the other containers of a gang bring counts as what rank 0 does.
    GangOthersBringOutcomes,
    /// A leader does not see that one before it has begun a change of the voters.
    ForgetsBegunChanges,
    /// A leader changes the voters without a look at who is there.
    ChangesVotersBlindly,
    /// A leader does not see in which zones nodes are.
    SeesNoZones,
    /// A node takes for lost whom it does not reach itself, though another says that it hears it.
    BelievesNobodyElse,
    /// What does not reach a node directly is not said to it through another.
    NoWayAround,
    /// A machine of the seeds founds a cluster though a seed does not answer.
    FoundsWhileASeedIsSilent,
}

impl Mutant {
    /// Those of worlds in which machines become one cluster.
    pub const FORMATION: [Self; 1] = [Self::FoundsWhileASeedIsSilent];
    /// All others.
    pub const ALL: [Self; 20] = [
        Self::AckedWhenSent,
        Self::LyingDisk,
        Self::AsksNobodyWhatRuns,
        Self::PlansBeforeTheBarrier,
        Self::NewLeaderHearsNobody,
        Self::AnswersUnconfirmed,
        Self::TriesAgainByAnotherKey,
        Self::CursorRunsAhead,
        Self::DataCursorRunsAhead,
        Self::FiringHasNoId,
        Self::DeafToCancels,
        Self::CancelledWhenAsked,
        Self::GangWaitsForNobody,
        Self::GangGoesOnAlone,
        Self::GangOthersBringOutcomes,
        Self::ForgetsBegunChanges,
        Self::ChangesVotersBlindly,
        Self::SeesNoZones,
        Self::BelievesNobodyElse,
        Self::NoWayAround,
    ];
}
