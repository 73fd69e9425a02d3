package main

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// rerequested runs again what somebody asks for at GitHub: with "Re-run" of a check, its job; with "Re-run failed checks",
// which is one event for each of them, the failed jobs of a run; with "Re-run all checks" all jobs of all runs of the
// commit. Errors are logged: the webhook was accepted.
//
// https://docs.github.com/en/webhooks/webhook-events-and-payloads#check_run
func (s *server) rerequested(ctx context.Context, ev tgr.Event) {
	var p struct {
		CheckRun struct {
			ExternalID string `json:"external_id"`
			App        struct {
				ID int64 `json:"id"`
			} `json:"app"`
		} `json:"check_run"`
		CheckSuite struct {
			HeadSHA string `json:"head_sha"`
			App     struct {
				ID int64 `json:"id"`
			} `json:"app"`
		} `json:"check_suite"`
	}
	if err := json.Unmarshal(ev.Payload, &p); err != nil {
		return // the webhook's decoder has refused what is not JSON; what is of another shape asks for nothing
	}
	app := s.c.get("github-app-id")
	ours := func(id int64) bool { return app != "" && strconv.FormatInt(id, 10) == app }
	switch {
	case ev.Name == "check_run" && ours(p.CheckRun.App.ID):
		s.rerunCheck(ctx, ev, p.CheckRun.ExternalID)
	case ev.Name == "check_suite" && ours(p.CheckSuite.App.ID):
		s.rerunCommit(ctx, ev, p.CheckSuite.HeadSHA)
	}
}

// rerunCheck repeats the job of a check run, or, if it failed, all failed jobs of its run: the events for the others
// come next, and find the run on its way.
func (s *server) rerunCheck(ctx context.Context, ev tgr.Event, externalID string) {
	id, err := strconv.ParseInt(externalID, 10, 64)
	if err != nil {
		return // the check of a run whose workflow could not be read: the same commit would fail the same way
	}
	job, err := s.store.Job(ctx, tgr.JobID(id))
	if err != nil {
		s.log.Warn("a check run that is not of a job here was to be run again", "external_id", id, "error", err)
		return
	}
	run, err := s.store.Run(ctx, job.Run)
	if err != nil || run.Event.Repo.ID != ev.Repo.ID {
		s.log.Warn("a check run of another repository was to be run again", "job", id, "repo", ev.Repo.FullName, "error", err)
		return
	}
	again := store.Again{Failed: true}
	if !job.Conclusion.Failed() {
		again = store.Again{Job: s.latest(ctx, run, job)}
	}
	s.again(ctx, run, again, ev.Actor)
}

// latest is the row of a job in its run's current attempt; the job itself if there is none.
func (s *server) latest(ctx context.Context, run tgr.Run, job tgr.Job) tgr.JobID {
	jobs, err := s.store.Jobs(ctx, run.ID, run.Attempt)
	if err == nil {
		for _, j := range jobs {
			if j.Key == job.Key && j.Index == job.Index {
				return j.ID
			}
		}
	}
	return job.ID
}

// maxRerunRuns is how many runs of a repository are looked at for those of a commit.
const maxRerunRuns = 1000

// rerunCommit repeats the latest run of each workflow and event of a commit.
func (s *server) rerunCommit(ctx context.Context, ev tgr.Event, sha string) {
	runs, err := s.store.Runs(ctx, store.RunFilter{Repo: ev.Repo.FullName, Limit: maxRerunRuns})
	if err != nil {
		s.log.Error("find the runs of a commit that are to run again", "sha", sha, "error", err)
		return
	}
	type workflow struct{ file, event string }
	seen := map[workflow]bool{}
	for _, run := range runs {
		w := workflow{run.WorkflowFile, run.Event.Name}
		if run.Event.HeadSHA != sha && run.Event.SHA != sha || run.Event.Repo.ID != ev.Repo.ID || run.WorkflowFile == "" || seen[w] ||
			run.Conclusion == tgr.StartupFailure {
			continue
		}
		seen[w] = true
		s.again(ctx, run, store.Again{}, ev.Actor)
	}
}

// again begins a new attempt. A run that goes on already is no error: two events may ask for the same.
func (s *server) again(ctx context.Context, run tgr.Run, what store.Again, by string) {
	attempt, err := s.store.Rerun(ctx, run.ID, what)
	if err == nil {
		err = s.dispatch.Settle(ctx, run.ID)
	}
	if err != nil {
		s.log.Warn("what GitHub asked to run again does not", "run", run.ID, "by", by, "error", err)
		return
	}
	s.log.Info("runs again, as GitHub asked", "run", run.ID, "attempt", attempt, "by", by)
}
