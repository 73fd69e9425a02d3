package main

import (
	"cmp"
	"context"
	"encoding/json"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/joblog"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/web"
	"github.com/terraphim/tgr/workflow"
)

// accept makes a webhook durable and has it planned.
func (s *server) accept(ctx context.Context, d tgr.Delivery) ([]tgr.RunID, bool, error) {
	runs, fresh, err := s.store.Accept(ctx, d)
	if err == nil && fresh {
		s.dispatch.Wake()
		if d.Event.Action == "rerequested" {
			s.rerequested(context.WithoutCancel(ctx), d.Event)
		}
	}
	return runs, fresh, err
}

// follow is the event of what has become of a run, where a workflow starts on it.
func (s *server) follow(run tgr.Run, action string, followers []tgr.Follower) (tgr.Event, bool) {
	return dispatch.RunEvent(run, action, followers, func(id tgr.RunID) string { return s.reports.link(id, 0) })
}

// observer counts what dispatch does.
func (s *server) observer() dispatch.Observer {
	return dispatch.Observer{
		Planned: s.metrics.ObservePlan,
		Acquired: func(isolation string, wait, boot time.Duration) {
			s.metrics.ObserveVMAllocation(isolation, wait)
			s.metrics.ObserveVMBoot(isolation, boot)
		},
		Stepped: func(c tgr.Conclusion, d time.Duration) { s.metrics.ObserveStep(string(c), d) },
		Finished: func(run tgr.Run, job tgr.Job, r dispatch.JobResult) {
			s.metrics.ObserveJob(string(r.Conclusion))
			s.advice.finished(run, job, r)
		},
		Faulted: func(b tgr.Blame) { s.metrics.CountError(string(b)) },
		Settled: func(run tgr.RunID) {
			s.reports.wake()
			s.retryFlaky(run)
		},
	}
}

// watchers are who wants to know when a run changes: streams of events. The zero value is ready.
type watchers struct {
	mu   sync.Mutex
	runs map[tgr.RunID][]chan struct{}
}

// add returns a channel that gets a value after the run has changed, until stop is called.
func (w *watchers) add(run tgr.RunID) (changed <-chan struct{}, stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.runs == nil {
		w.runs = map[tgr.RunID][]chan struct{}{}
	}
	ch := make(chan struct{}, 1) // one value stands for all changes that were not looked at
	w.runs[run] = append(w.runs[run], ch)
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.runs[run] = slices.DeleteFunc(w.runs[run], func(c chan struct{}) bool { return c == ch })
		if len(w.runs[run]) == 0 {
			delete(w.runs, run)
		}
	}
}

// changed tells those who watch the run.
func (w *watchers) changed(run tgr.RunID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ch := range w.runs[run] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// logBook lets dispatch write, and web read, the logs of jobs.
type logBook struct {
	logs  *joblog.Store
	store *store.Store
}

// Create implements dispatch.Logs.
func (b logBook) Create(job tgr.JobID, try int) (dispatch.Log, error) { return b.logs.Create(job, try) }

// Read implements web.LogReader.
func (b logBook) Read(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error] {
	return b.lines(ctx, job, func(j tgr.Job) iter.Seq2[joblog.Line, error] {
		return b.logs.Read(ctx, j.ID, joblog.Range{Try: try, From: int64(from)})
	})
}

// Follow implements web.LogReader. The log of an earlier try is complete: there is nothing to follow.
func (b logBook) Follow(ctx context.Context, job tgr.JobID, try, from int) iter.Seq2[tgr.LogLine, error] {
	return b.lines(ctx, job, func(j tgr.Job) iter.Seq2[joblog.Line, error] {
		if try != 0 && try < j.Tries {
			return b.logs.Read(ctx, j.ID, joblog.Range{Try: try, From: int64(from)})
		}
		return b.logs.Follow(ctx, j.ID, int64(from))
	})
}

// lines drops the numbers of lines. The log may be that of the attempt that the job was carried over from.
func (b logBook) lines(ctx context.Context, job tgr.JobID, read func(tgr.Job) iter.Seq2[joblog.Line, error]) iter.Seq2[tgr.LogLine, error] {
	return func(yield func(tgr.LogLine, error) bool) {
		id, err := b.store.LogOf(ctx, job)
		if err != nil {
			yield(tgr.LogLine{}, err)
			return
		}
		j, err := b.store.Job(ctx, id)
		if err != nil {
			yield(tgr.LogLine{}, err)
			return
		}
		for l, err := range read(j) {
			if tgr.CodeOf(err) == tgr.NotFound {
				return // it has logged nothing yet
			}
			if !yield(l.LogLine, err) {
				return
			}
		}
	}
}

// runBook lets web read runs and jobs.
type runBook struct{ *store.Store }

// Runs implements web.RunStore.
func (b runBook) Runs(ctx context.Context, f web.Filter) ([]tgr.Run, error) {
	return b.Store.Runs(ctx, store.RunFilter(f))
}

// Jobs implements web.RunStore: in the order of the workflow file, and of the matrix. A run that was not planned shows
// the job that plans it.
func (b runBook) Jobs(ctx context.Context, run tgr.RunID, attempt int) ([]tgr.Job, error) {
	jobs, err := b.Store.Jobs(ctx, run, attempt)
	if err != nil {
		return nil, err
	}
	if len(jobs) == 0 {
		plan, err := b.PlanJob(ctx, run)
		if err != nil {
			return nil, err
		}
		return []tgr.Job{plan}, nil
	}
	r, err := b.Store.Run(ctx, run)
	if err != nil {
		return nil, err
	}
	var plan workflow.Plan
	if err := json.Unmarshal(r.Plan, &plan); err != nil {
		return jobs, nil // a plan that cannot be read has no order to keep
	}
	places := make(map[tgr.JobID][]int, len(jobs))
	for _, j := range jobs {
		places[j.ID] = append(dispatch.Order(&plan, j.Key), j.Index)
	}
	slices.SortStableFunc(jobs, func(a, b tgr.Job) int { return slices.Compare(places[a.ID], places[b.ID]) })
	return jobs, nil
}

// control lets web change runs.
type control struct{ s *server }

// Cancel implements web.Controller.
func (c control) Cancel(ctx context.Context, run tgr.RunID, job tgr.JobID, reason, by string) error {
	if err := c.s.store.CancelRun(ctx, run, job, reason, by); err != nil {
		return err
	}
	c.s.dispatch.Cancelled(run)
	return c.s.dispatch.Settle(ctx, run)
}

// Rerun implements web.Controller.
func (c control) Rerun(ctx context.Context, run tgr.RunID, r web.Rerun) (int, error) {
	attempt, err := c.s.store.Rerun(ctx, run, store.Again{Failed: r.What == web.RerunFailed, Job: r.Job})
	if err != nil {
		return 0, err
	}
	return attempt, c.s.dispatch.Settle(ctx, run)
}

// Approve implements web.Controller.
func (c control) Approve(ctx context.Context, run tgr.RunID, a web.ApproveRequest) (string, error) {
	environment, err := c.s.store.Approve(ctx, run, tgr.Approval{Environment: a.Environment, Approved: !a.Reject, By: a.By, Comment: a.Comment})
	if err != nil {
		return "", err
	}
	return environment, c.s.dispatch.Settle(ctx, run)
}

// Dispatch implements web.Controller: it makes the event that GitHub sends for workflow_dispatch, for a repository
// that has sent a webhook before.
func (c control) Dispatch(ctx context.Context, d web.Dispatch) ([]tgr.RunID, error) {
	known, err := c.s.store.Runs(ctx, store.RunFilter{Repo: d.Repo, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(known) == 0 {
		return nil, tgr.Errorf("dispatch", tgr.NotFound, "no webhook of repository %s has arrived yet, so it is not known here", d.Repo)
	}
	repo := known[0].Event.Repo
	ref := cmp.Or(d.Ref, repo.DefaultBranch)
	if !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/" + ref
	}
	inputs := map[string]any{}
	for k, v := range d.Inputs {
		inputs[k] = v
	}
	payload, err := json.Marshal(map[string]any{
		"inputs": inputs, "ref": ref, "workflow": d.Workflow,
		"repository": map[string]any{"id": repo.ID, "full_name": repo.FullName, "clone_url": repo.CloneURL, "default_branch": repo.DefaultBranch},
	})
	if err != nil {
		return nil, err
	}
	ev := tgr.Event{Name: "workflow_dispatch", Repo: repo, Ref: ref, Actor: "tgr", Payload: payload}
	runs, _, err := c.s.accept(ctx, tgr.Delivery{ID: tgr.DeliveryID("tgr-" + tgr.NewToken()), Event: ev, Received: time.Now()})
	return runs, err
}
