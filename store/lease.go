package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// ErrNothing is what Claim returns when no job can be claimed.
var ErrNothing = errors.New("store: no job to claim")

// ClaimRequest says who wants a job, and which.
type ClaimRequest struct {
	Owner string        // required: the claiming node or worker, for OwnerGone
	Lease time.Duration // required: how long the claim holds without a Beat
	Kinds []tgr.JobKind // nil: all
}

// Lease is a claimed job: it is in progress and belongs to whoever has Token until Until, and longer with each Beat.
type Lease struct {
	tgr.Redacted

	Job   tgr.Job
	Run   tgr.Run // with its plan and its event's payload
	Token string  // fencing token: every later write about the job needs it
	Until time.Time
}

// Claim leases a job of the kinds asked for: of the repository of which fewest run, and there, or among equals, the one that
// has been queued longest. It honours max-parallel among the instances of one job of one attempt, counts one of the job's
// tries and forgets the steps of an earlier one.
// It returns [ErrNothing] where there is none.
func (s *Store) Claim(ctx context.Context, req ClaimRequest) (*Lease, error) {
	if req.Owner == "" || req.Lease <= 0 {
		return nil, tgr.Errorf("store.claim", tgr.Invalid, "a claim needs an owner and a lease")
	}
	if len(req.Kinds) == 0 {
		req.Kinds = []tgr.JobKind{tgr.PlanJob, tgr.WorkJob}
	}
	// Workers ask often and mostly in vain: a read finds that out without a write transaction.
	if _, err := next(ctx, s.r, req.Kinds, s.cfg.Now()); err != nil {
		return nil, s.dialect.fault("claim", err)
	}
	var l *Lease
	err := s.write(ctx, "claim", func(t *tx) error {
		var err error
		l, err = t.claim(req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// next finds the job to claim, or returns ErrNothing.
func next(ctx context.Context, q querier, kinds []tgr.JobKind, now time.Time) (tgr.JobID, error) {
	query, args := nextQuery(kinds, now)
	var id tgr.JobID
	err := q.QueryRowContext(ctx, query, args...).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, ErrNothing
	}
	return id, err
}

// nextQuery asks for the job to claim. It goes from repository to repository of those that have queued jobs, by the index
// jobs_queue, and takes the head of each queue: how many wait behind it costs nothing. It says ORDER BY and LIMIT where
// MIN would do, and has subqueries instead of a join, so that PostgreSQL has no other way even where it knows nothing of the tables yet.
func nextQuery(kinds []tgr.JobKind, now time.Time) (string, []any) {
	first, args := make([]string, len(kinds)), []any{nanos(now)}
	for i, k := range kinds {
		first[i] = fmt.Sprintf("SELECT $%[1]d, (SELECT repo_id FROM jobs WHERE status = 'queued' AND kind = $%[1]d ORDER BY repo_id LIMIT 1)", i+2)
		args = append(args, k)
	}
	return `WITH RECURSIVE queues (kind, repo_id) AS (` + strings.Join(first, " UNION ALL ") + `
			UNION ALL SELECT q.kind, (SELECT n.repo_id FROM jobs n WHERE n.status = 'queued' AND n.kind = q.kind AND n.repo_id > q.repo_id ORDER BY n.repo_id LIMIT 1)
			FROM queues q WHERE q.repo_id IS NOT NULL),
		heads (kind, repo_id, id) AS MATERIALIZED (SELECT q.kind, q.repo_id, (
			SELECT c.id FROM jobs c WHERE c.status = 'queued' AND c.kind = q.kind AND c.repo_id = q.repo_id AND c.not_before <= $1
			AND NOT EXISTS (SELECT 1 FROM members m WHERE m.run_id = c.run_id AND m.job_id = 0 AND m.waiting = 1)
			AND (c.max_parallel = 0 OR c.max_parallel > (SELECT COUNT(*) FROM jobs o WHERE o.status = 'in_progress'
				AND o.kind = c.kind AND o.repo_id = c.repo_id AND o.run_id = c.run_id AND o.attempt = c.attempt AND o.key = c.key))
			ORDER BY c.queued, c.id LIMIT 1) FROM queues q)
		SELECT h.id FROM heads h WHERE h.id IS NOT NULL
		ORDER BY (SELECT COUNT(*) FROM jobs r WHERE r.status = 'in_progress' AND r.kind = h.kind AND r.repo_id = h.repo_id),
			(SELECT j.queued FROM jobs j WHERE j.id = h.id), h.id
		LIMIT 1`, args
}

func (t *tx) claim(req ClaimRequest) (*Lease, error) {
	ctx := context.Background()
	id, err := next(ctx, t, req.Kinds, t.now)
	if err != nil {
		return nil, err
	}
	j, err := findJob(ctx, t, id)
	if err != nil {
		return nil, err
	}
	if err := j.claim(t.now, req.Owner, req.Lease); err != nil {
		return nil, err
	}
	if err := t.save(j, tgr.Queued); err != nil {
		return nil, err
	}
	if err := t.fold(j.Run); err != nil {
		return nil, err
	}
	run, err := findRun(ctx, t, j.Run, true)
	if err != nil {
		return nil, err
	}
	return &Lease{Job: j.Job, Run: run, Token: j.token, Until: j.until}, nil
}

// Beat extends a lease from now, and tells whether the job is to be cancelled and why. An error of [tgr.Conflict]
// means that the token is stale: the job belongs to another or is completed, and its machine must be closed.
func (s *Store) Beat(ctx context.Context, id tgr.JobID, token string, lease time.Duration) (cancel bool, reason string, err error) {
	if lease <= 0 {
		return false, "", tgr.Errorf("store.beat", tgr.Invalid, "a beat needs a lease")
	}
	err = s.change(ctx, "beat", id, token, func(t *tx, j *job) error {
		j.until = t.now.Add(lease)
		cancel, reason = j.cancel, j.cancelReason
		return nil
	})
	if err != nil {
		return false, "", err
	}
	return cancel, reason, nil
}

// UpdateSteps replaces the steps of a running job. A step goes only forward ([tgr.NextStep]); steps may be
// added, never removed.
func (s *Store) UpdateSteps(ctx context.Context, id tgr.JobID, token string, steps []tgr.Step) error {
	return s.change(ctx, "steps", id, token, func(t *tx, j *job) error {
		t.touch(j.Run)
		return j.step(steps)
	})
}

// SetMachine records the machine that a running job was given, and its isolation.
func (s *Store) SetMachine(ctx context.Context, id tgr.JobID, token, machine, isolation string) error {
	return s.change(ctx, "machine", id, token, func(t *tx, j *job) error {
		t.touch(j.Run)
		j.Machine, j.Isolation = machine, isolation
		return nil
	})
}

// JobResult is how a job ended.
type JobResult struct {
	Conclusion  tgr.Conclusion // required
	Blame       tgr.Blame
	Reason      string
	Outputs     map[string]string
	Steps       []tgr.Step // nil: as UpdateSteps left them
	Annotations []tgr.Annotation
	Summary     string     // Markdown
	Reports     []Outgoing // for the outbox, in the same transaction
}

// Finish completes a running job and ends its lease, then derives its run's status anew. A plan job that ends
// so, and not with Planned, completes its run with the same conclusion and reason. Where the outputs of the run's jobs have
// more than Config.MaxOutputs bytes with those of this one, it fails, and they are dropped.
func (s *Store) Finish(ctx context.Context, id tgr.JobID, token string, res JobResult) error {
	if res.Conclusion == "" {
		return tgr.Errorf("store.finish", tgr.Invalid, "the result of job %d has no conclusion", id)
	}
	return s.end(ctx, "finish", id, token, func(t *tx, j *job) error {
		if res.Steps != nil {
			if err := j.step(res.Steps); err != nil {
				return err
			}
		}
		if err := t.enqueue(res.Reports); err != nil {
			return err
		}
		return t.complete(j, res)
	})
}

// end lets fn end the lease of a job that belongs to token, and derives its run's status anew.
func (s *Store) end(ctx context.Context, op string, id tgr.JobID, token string, fn func(*tx, *job) error) error {
	return s.write(ctx, op, func(t *tx) error {
		j, err := t.held(id, token)
		if err != nil {
			return err
		}
		if err := fn(t, j); err != nil {
			return err
		}
		if err := t.save(j, tgr.InProgress); err != nil {
			return err
		}
		return t.fold(j.Run)
	})
}

// Release gives a running job back, for a fault of ours: to the queue where it has a try left (requeued), from which it
// can be claimed after a pause that doubles with each try; else it completes as a failure of ours with the reason. A job that was to be cancelled completes as cancelled. A try that is excused, as it
// ended with the server, does not count, and there is no pause.
func (s *Store) Release(ctx context.Context, id tgr.JobID, token, reason string, excused bool) (requeued bool, err error) {
	err = s.end(ctx, "release", id, token, func(t *tx, j *job) error {
		requeued, err = j.giveBack(t.now, reason, excused)
		return err
	})
	return requeued && err == nil, err
}

// Expire releases every running job whose lease has ended, and returns them as they are then. It is called
// at start and from time to time.
func (s *Store) Expire(ctx context.Context) ([]tgr.Job, error) {
	return s.reclaim(ctx, "expire", func(t *tx) ([]*job, error) {
		return findJobs(context.Background(), t, "WHERE status = 'in_progress' AND kind <> 'call' AND lease_until < $1 ORDER BY id", nanos(t.now))
	}, func(j *job, now time.Time) string {
		return fmt.Sprintf("its worker %s was not heard of since its lease ended, %s ago", j.owner, now.Sub(j.until).Round(time.Second))
	})
}

// Retake extends a lease that an earlier life of its owner had, also one that has ended, and returns it. An error of
// [tgr.Conflict] means that the job belongs to another, or to nobody.
func (s *Store) Retake(ctx context.Context, id tgr.JobID, owner, token string, lease time.Duration) (*Lease, error) {
	if owner == "" || token == "" || lease <= 0 {
		return nil, tgr.Errorf("store.retake", tgr.Invalid, "a lease has an owner, a token and a duration")
	}
	var l *Lease
	err := s.change(ctx, "retake", id, token, func(t *tx, j *job) error {
		if j.owner != owner {
			return tgr.Errorf("store.retake", tgr.Conflict, "job %d belongs to %s", id, j.owner)
		}
		j.until = t.now.Add(lease)
		run, err := findRun(context.Background(), t, j.Run, true)
		l = &Lease{Job: j.Job, Run: run, Token: token, Until: j.until}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// OwnerGone releases every running job of an owner whatever its lease says, but for those of except, and returns them as
// they are then: for a node that starts and knows that its former self is dead.
func (s *Store) OwnerGone(ctx context.Context, owner string, except ...tgr.JobID) ([]tgr.Job, error) {
	return s.reclaim(ctx, "owner gone", func(t *tx) ([]*job, error) {
		jobs, err := findJobs(context.Background(), t, "WHERE status = 'in_progress' AND owner = $1 ORDER BY id", owner)
		return slices.DeleteFunc(jobs, func(j *job) bool { return slices.Contains(except, j.ID) }), err
	}, func(j *job, _ time.Time) string {
		return fmt.Sprintf("its worker %s was stopped while it ran", j.owner)
	})
}

// reclaim gives back the running jobs that find lists, each for the reason that why gives.
func (s *Store) reclaim(ctx context.Context, op string, find func(*tx) ([]*job, error), why func(*job, time.Time) string) ([]tgr.Job, error) {
	var out []tgr.Job
	err := s.write(ctx, op, func(t *tx) error {
		jobs, err := find(t)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if _, err := j.giveBack(t.now, why(j, t.now), false); err != nil {
				return err
			}
			if err := t.save(j, tgr.InProgress); err != nil {
				return err
			}
			if err := t.fold(j.Run); err != nil {
				return err
			}
		}
		out = plain(jobs)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
