package main

import (
	"context"
	"errors"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/store"
)

// ledger lets dispatch work on the store, each of which has words of its own for what passes between them.
type ledger struct{ *store.Store }

// Claim implements dispatch.Jobs.
func (l ledger) Claim(ctx context.Context, c dispatch.Claim) (*dispatch.Lease, error) {
	got, err := l.Store.Claim(ctx, store.ClaimRequest{Owner: c.Owner, Lease: c.Lease, Kinds: c.Kinds})
	if errors.Is(err, store.ErrNothing) {
		return nil, dispatch.ErrNothing
	}
	if err != nil {
		return nil, err
	}
	return &dispatch.Lease{Job: got.Job, Run: got.Run, Token: got.Token, Until: got.Until}, nil
}

// Beat implements dispatch.Jobs.
func (l ledger) Beat(ctx context.Context, job tgr.JobID, token string, lease time.Duration) (string, error) {
	cancel, reason, err := l.Store.Beat(ctx, job, token, lease)
	if cancel && reason == "" {
		reason = "cancelled"
	}
	return reason, err
}

// Progress implements dispatch.Jobs.
func (l ledger) Progress(ctx context.Context, job tgr.JobID, token string, p dispatch.Progress) error {
	if p.Machine != "" {
		if err := l.SetMachine(ctx, job, token, p.Machine, p.Isolation); err != nil {
			return err
		}
	}
	if p.Steps != nil {
		return l.UpdateSteps(ctx, job, token, p.Steps)
	}
	return nil
}

// Finish implements dispatch.Jobs.
func (l ledger) Finish(ctx context.Context, job tgr.JobID, token string, r dispatch.JobResult) error {
	return l.Store.Finish(ctx, job, token, jobResult(r))
}

func jobResult(r dispatch.JobResult) store.JobResult {
	return store.JobResult{Conclusion: r.Conclusion, Blame: r.Blame, Reason: r.Reason,
		Outputs: r.Outputs, Steps: r.Steps, Annotations: r.Annotations, Summary: r.Summary}
}

// Release implements dispatch.Jobs.
func (l ledger) Release(ctx context.Context, job tgr.JobID, token, reason string, excused bool) error {
	_, err := l.Store.Release(ctx, job, token, reason, excused)
	return err
}

// Planned implements dispatch.Runs.
func (l ledger) Planned(ctx context.Context, job tgr.JobID, token string, p dispatch.Planned) ([]tgr.RunID, error) {
	out := store.Planned{Reason: p.Reason, Event: &p.Event, Awaited: p.Awaited}
	for _, r := range p.Runs {
		out.Runs = append(out.Runs, store.PlannedRun{Event: r.Event, WorkflowFile: r.WorkflowFile, WorkflowName: r.WorkflowName,
			Title: r.Title, Group: r.Group, Hold: r.Hold, Plan: r.Plan, Jobs: r.Jobs, Conclusion: r.Conclusion, Reason: r.Reason})
	}
	return l.Store.Planned(ctx, job, token, out)
}

// Settle implements dispatch.Runs.
func (l ledger) Settle(ctx context.Context, run tgr.RunID, fn func(tgr.Run, []tgr.Job) (dispatch.Change, error)) error {
	return l.Store.Settle(ctx, run, func(run tgr.Run, jobs []tgr.Job) (store.Change, error) {
		c, err := fn(run, jobs)
		if err != nil {
			return store.Change{}, err
		}
		out := store.Change{Skip: c.Skip, Cancel: c.Cancel, Begin: c.Begin, Queue: c.Queue, Wait: c.Wait, CancelRun: c.CancelRun, Expand: map[tgr.JobID]store.Expansion{}, End: map[tgr.JobID]store.JobResult{}}
		for id, rows := range c.Expand {
			out.Expand[id] = store.Expansion{Jobs: rows, MaxParallel: rows[0].MaxParallel}
		}
		for id, r := range c.End {
			out.End[id] = jobResult(r)
		}
		return out, nil
	})
}

// Expire implements dispatch.Runs.
func (l ledger) Expire(ctx context.Context, owner string, except ...tgr.JobID) ([]tgr.Job, error) {
	if owner != "" {
		return l.OwnerGone(ctx, owner, except...)
	}
	return l.Store.Expire(ctx)
}

var (
	_ dispatch.Jobs = ledger{}
	_ dispatch.Runs = ledger{}
)
