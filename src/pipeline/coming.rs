//! Tables that come into the publication: with a start, which plans them, or while the slot is made, which may take as long as somebody's
//! transaction. Copies nothing.

use crate::config::PostgresSink as SinkConfig;
use crate::model::{Copied, Lsn, QualifiedName, listed};
use crate::sink::postgres::{TableFilter, Wanted};
use crate::snapshot::{self, Published, Returning, SnapshotError};
use crate::source::{
    Additions, Coming, Publication, coming_tables, commit_publication, ensure_publication, leaves, list_again,
    lists_standby, synchronous_standby_names,
};

use super::PipelineError;
use super::attempt::Attempt;
use super::primary::Primary;
use super::resume::Beginning;

/// Where tables are copied as they come, only those are published whose copy is planned.
pub(super) fn planned(coming: &Coming, additions: Additions, is_copied: bool) -> Additions {
    if is_copied && additions == Additions::IfAllowed { Additions::Planned(coming.tables.clone()) } else { additions }
}

impl Attempt<'_> {
    /// New tables are added once commits cannot wait for this pipeline while their copy waits for the commits.
    pub(super) async fn additions(&self, primary: &Primary, beginning: Beginning) -> Result<Additions, PipelineError> {
        if beginning == Beginning::Fresh {
            return Ok(Additions::Now);
        }
        if !self.settings.pipeline.initial_copy {
            return Ok(Additions::IfAllowed);
        }
        let names = synchronous_standby_names(&primary.sql).await?;
        Ok(if lists_standby(&names, self.name().as_str()) { Additions::Later } else { Additions::IfAllowed })
    }

    /// What is to come into a publication of ours must have its place on the standby: a start that is refused changes nothing. One that
    /// only follows a fault goes on with the tables that streamed before. Planned before they are published: else a start that is cut off in
    /// between would take them for tables that streamed from the first on.
    pub(super) async fn publish_for_standby(
        &self,
        primary: &Primary,
        sink: &SinkConfig,
        additions: Additions,
    ) -> Result<Publication, PipelineError> {
        let pipeline = &self.settings.pipeline;
        let coming = self.coming(primary, &additions).await?;
        let returning = match additions {
            _ if !pipeline.initial_copy => Returning::Uncopied,
            Additions::Later => Returning::Later,
            _ if self.has_streamed => Returning::CopiedIfFit,
            _ => Returning::Copied,
        };
        let mut additions = planned(&coming, additions, pipeline.initial_copy);
        match snapshot::plan_coming(&primary.sql, &sink.url, pipeline, &coming.leaves).await {
            Err(error @ (SnapshotError::Unfit(_) | SnapshotError::NotEmpty(_))) if self.has_streamed => {
                tracing::warn!(%error, "new tables wait for the next start; the others go on");
                additions = Additions::Later;
            }
            planned => planned?,
        }
        let mut publication = self.publication(primary, &additions).await?;
        if additions.is_open() {
            let late = self.late_leaves(primary, &coming, &[]).await?;
            snapshot::plan_published(&primary.sql, &sink.url, pipeline, &late).await?;
            let later = self.commit_publication(primary, &mut publication, &coming, &late).await?;
            snapshot::plan_published(&primary.sql, &sink.url, pipeline, &later).await?;
        }
        let Publication { name, tables, others, named, .. } = &publication;
        let published = Published { publication: name, wanted: tables, others, named };
        let noted = snapshot::note_set(&primary.sql, &sink.url, pipeline, published, returning).await?;
        self.refusals.note_ours(noted.copied);
        let stay_out = noted.stay_out;
        publication.tables.retain(|table| !stay_out.contains(table));
        publication.others.extend(stay_out);
        Ok(publication)
    }

    /// The tables that are about to come into a publication of ours, and will be copied.
    pub(super) async fn coming(&self, primary: &Primary, additions: &Additions) -> Result<Coming, PipelineError> {
        let pipeline = &self.settings.pipeline;
        if pipeline.publication.is_some() || !pipeline.initial_copy || *additions == Additions::Later {
            return Ok(Coming::default());
        }
        Ok(coming_tables(&primary.sql, &pipeline.publication_name(), &pipeline.tables).await?)
    }

    /// Partitions that were made between the plan and now: rows may have come into them meanwhile.
    pub(super) async fn late_leaves(
        &self,
        primary: &Primary,
        coming: &Coming,
        planned: &[QualifiedName],
    ) -> Result<Vec<QualifiedName>, PipelineError> {
        let mut late = leaves(&primary.sql, &coming.tables).await?;
        late.retain(|leaf| ![&coming.leaves, &coming.streaming, planned].iter().any(|known| known.contains(leaf)));
        Ok(late)
    }

    /// Changes the publication, and lists it again: its lock keeps partitions away from the tables that it names, not from a partition
    /// that is partitioned itself. Gives what has come until now.
    pub(super) async fn commit_publication(
        &self,
        primary: &Primary,
        publication: &mut Publication,
        coming: &Coming,
        planned: &[QualifiedName],
    ) -> Result<Vec<QualifiedName>, PipelineError> {
        commit_publication(&primary.sql, &publication.name).await?;
        list_again(&primary.sql, publication, &self.settings.pipeline.tables).await?;
        self.late_leaves(primary, coming, planned).await
    }

    /// Which relations of the stream are ours: what the publication holds of the set. A name that is neither listed nor of the set is a
    /// partition that has come since, or was one; where the publication holds other tables too it may be anything, and is looked for once.
    pub(super) fn filter(&self, publication: &Publication) -> TableFilter {
        let set = &self.settings.pipeline.tables;
        // An old change of what had a name of the set then is of ours, and so is one of a partition that is gone and was copied, where nothing
        // beside the set is published.
        let (of_the_set, sought): (Vec<_>, Vec<_>) =
            self.refusals.sought_in_vain(&publication.tables).into_iter().partition(|name| {
                let was_ours = !publication.has_strangers && !set.excludes(name) && self.refusals.was_ours(name);
                (set.contains(name) || was_ours) && !publication.others.contains(name)
            });
        if !sought.is_empty() {
            let tables = listed(&sought);
            tracing::warn!(
                tables,
                "left out: published, but neither of the set nor a partition of one that is, as far as the catalog tells"
            );
        }
        TableFilter::Listed {
            set: set.clone(),
            names: publication.tables.iter().cloned().chain(of_the_set).collect(),
            others: publication.others.iter().cloned().chain(sought).collect(),
            // What is in a table before somebody adds it is not in the stream.
            newcomers: if publication.has_strangers || publication.may_gain { Wanted::Unknown } else { Wanted::Yes },
        }
    }

    /// What the stream from here on is to know of the copies. Where there is none, a table that is made again streams from where it comes.
    pub(super) fn copied(
        &self,
        copied: Copied,
        start: Option<Lsn>,
        primary: &Primary,
        publication: &Publication,
    ) -> Copied {
        let named = publication.named.keys().filter(|_| self.settings.pipeline.initial_copy);
        // A first stream begins with the copy.
        let start = start.unwrap_or_else(|| copied.last());
        copied.at(start, primary.identity.flushed_lsn, named.cloned())
    }

    /// Ends the attempt if tables came while the slot was made: the copy was planned before, and the stream begins behind it, so that what was
    /// written to them in between would be in neither. The next attempt plans them too, and copies as of a snapshot of its own.
    pub(super) async fn plan_again_for_newcomers(
        &self,
        primary: &Primary,
        before: &Publication,
    ) -> Result<(), PipelineError> {
        let tables = &self.settings.pipeline.tables;
        let now = ensure_publication(&primary.sql, &before.name, false, tables, &Additions::Later).await?;
        let new: Vec<_> = now.tables.into_iter().filter(|table| !before.tables.contains(table)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let tables = listed(&new);
        Err(PipelineError::NotYet(format!("the copy to be planned again: {tables} came while the slot was made")))
    }
}
