package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/joblog"
	"github.com/terraphim/tgr/learn"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/web"
	"github.com/terraphim/tgr/workflow"
)

// learner connects what learns to what runs. A nil one is off, and all its methods do nothing.
type learner struct {
	*learn.Learner
	timeouts bool // its time-outs are applied
	retry    bool // what failed by chance is repeated
}

// openLearner opens the learner, unless the settings turn it off. One that cannot be opened is off, and keeps nothing from running.
func (s *server) openLearner() error {
	on, err := s.c.oneOf("learn", "true", "false")
	if err != nil {
		return err
	}
	timeouts, err := s.c.oneOf("learn-timeouts", "true", "false")
	if err != nil {
		return err
	}
	retry, err := s.c.oneOf("retry-flaky", "true", "false")
	if err != nil || on == "false" {
		return err
	}
	l, err := learn.Open(context.Background(), learn.Config{
		Path: learnPath(s.c), Log: s.log, Source: history{s.store, s.logs},
		Learnt: func(r learn.Record) { s.refreshHint(r) },
	})
	if err != nil {
		s.log.Error("the learner is off: nothing is learnt from runs", "error", err)
		return nil
	}
	s.learner = &learner{l, timeouts == "true", retry == "true"}
	s.closers = append(s.closers, l.Close)
	s.reports.hint = func(run tgr.Run, jobs []tgr.Job) string { return s.reports.redact(l.Hint(run, jobs)) }
	return nil
}

func learnPath(c *config) string { return filepath.Join(c.get("data-dir"), "learn.db") }

// refreshHint has the comment of a pull request written again, now that something is known of the failure.
func (s *server) refreshHint(r learn.Record) {
	if r.Run.Event.Number == 0 || r.Job.Conclusion != tgr.Failure || s.learner.Hint(r.Run, []tgr.Job{r.Job}) == "" {
		return
	}
	if err := s.store.Refresh(context.Background(), r.Run.ID); err != nil {
		s.log.Warn("report what was learnt of a failure", "run", r.Run.ID, "error", err)
	}
}

// retryFlaky has the failed jobs of a run run once more, if somebody asked for that and chance alone has failed them. It is
// called whenever a run was settled.
func (s *server) retryFlaky(id tgr.RunID) {
	ctx := context.Background()
	if s.learner == nil || !s.learner.retry {
		return
	}
	run, err := s.store.Run(ctx, id)
	if err != nil || run.Attempt != 1 || run.Conclusion != tgr.Failure {
		return
	}
	jobs, err := s.store.Jobs(ctx, id, run.Attempt)
	if err != nil {
		s.log.Warn("look whether a run failed by chance", "run", id, "error", err)
		return
	}
	steps := s.learner.Flaky(run, slices.DeleteFunc(jobs, func(j tgr.Job) bool { return j.Kind == tgr.PlanJob }))
	if steps == "" {
		return
	}
	if _, err := s.store.Rerun(ctx, id, store.Again{Failed: true}); err != nil {
		s.log.Warn("repeat what failed by chance", "run", id, "error", err)
		return
	}
	s.log.Info("the run failed in nothing but flaky steps, and is repeated once", "run", id, "steps", steps)
	s.dispatch.Wake()
}

func (l *learner) run(ctx context.Context) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	return l.Run(ctx)
}

// Timeout implements dispatch.Learner: time-outs are applied only where somebody asked for it.
func (l *learner) Timeout(run tgr.Run, job tgr.Job) time.Duration {
	if !l.timeouts {
		return 0
	}
	return l.Learner.Timeout(run, job)
}

func (l *learner) forDispatch() dispatch.Learner {
	if l == nil {
		return nil
	}
	return l
}

func (l *learner) forWeb() web.Learned {
	if l == nil {
		return nil
	}
	return l
}

// Insights implements web.Learned.
func (l *learner) Insights(ctx context.Context, repo string, forks bool, command string) (tgr.Insights, error) {
	return l.Learner.Insights(ctx, learn.Question{Repo: repo, Forks: forks, Command: learn.Template(command, "")})
}

// history is the log of runs, as the learner reads it.
type history struct {
	store *store.Store
	logs  *joblog.Store
}

const linesOfStep = 200 // that the learner looks at

// Finished implements learn.Source.
func (h history) Finished(ctx context.Context, after int64, limit int) ([]learn.Record, error) {
	list, err := h.store.FinishedAfter(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	var out []learn.Record
	for _, f := range list {
		run, err := h.store.Run(ctx, f.Job.Run)
		if err != nil {
			return out, err
		}
		r := learn.Record{Seq: f.Seq, Run: run, Job: f.Job, Commands: commandsOf(run.Plan, f.Job)}
		r.Run.Plan = nil
		if r.Log, err = h.tail(ctx, f.Job); tgr.CodeOf(err) == tgr.NotFound || tgr.CodeOf(err) == tgr.Internal {
			r.Lost = !f.Job.Started.IsZero() // gone, or damaged after the lines that are there
		} else if err != nil {
			return out, err
		}
		out = append(out, r)
	}
	return out, nil
}

// tail is the end of each step's log.
func (h history) tail(ctx context.Context, job tgr.Job) ([]tgr.LogLine, error) {
	rings := map[int][]tgr.LogLine{}
	for l, err := range h.logs.Read(ctx, job.ID, joblog.Range{}) {
		if err != nil {
			return nil, err
		}
		ring := append(rings[l.Step], l.LogLine)
		if len(ring) >= 2*linesOfStep {
			ring = append(ring[:0], ring[len(ring)-linesOfStep:]...)
		}
		rings[l.Step] = ring
	}
	var out []tgr.LogLine
	for _, st := range job.Steps {
		ring := rings[st.Number]
		out = append(out, ring[max(0, len(ring)-linesOfStep):]...)
	}
	return out, nil
}

// callIndex is the index of a combination in the path of a called job: "deploy[1]/build".
var callIndex = regexp.MustCompile(`\[\d+\]$`)

// commandsOf finds what the steps of a job ran, in its plan: by id, or by the name that a step has before it is evaluated. A step
// whose name was evaluated and that has no id is not found, and teaches nothing of its command.
func commandsOf(data []byte, job tgr.Job) map[int]learn.Command {
	planned := jobInPlan(data, job.Key)
	if planned == nil {
		return nil
	}
	out := map[int]learn.Command{}
	steps := flat(planned.Steps)
	for _, st := range job.Steps {
		at := slices.IndexFunc(steps, func(p workflow.Step) bool {
			return st.Name == nameOf(p) || st.ID != "" && st.ID == p.ID && !hook(st.Name)
		})
		if at < 0 {
			continue
		}
		out[st.Number] = learn.Command{Run: steps[at].Run, Uses: steps[at].Uses}
		steps = steps[at+1:]
	}
	return out
}

// jobInPlan finds a job in a stored plan, by its key, which of a called workflow's job is a path; nil where it is not there.
func jobInPlan(data []byte, key string) *workflow.Job {
	var plan *workflow.Plan
	if json.Unmarshal(data, &plan) != nil || plan == nil {
		return nil
	}
	var planned *workflow.Job
	for part := range strings.SplitSeq(key, "/") {
		if planned != nil && planned.Call != nil {
			plan = planned.Call.Plan
		}
		if planned = plan.Job(callIndex.ReplaceAllString(part, "")); planned == nil {
			return nil
		}
	}
	return planned
}

func hook(name string) bool {
	return strings.HasPrefix(name, "Pre ") || strings.HasPrefix(name, "Post ")
}

func flat(steps []workflow.Step) []workflow.Step {
	var out []workflow.Step
	for _, s := range steps {
		if len(s.Parallel) > 0 {
			out = append(out, flat(s.Parallel)...)
			continue
		}
		out = append(out, s)
	}
	return out
}

// nameOf is what a step is called that has no name of its own, as GitHub calls it.
func nameOf(s workflow.Step) string {
	switch {
	case s.Name != "":
		return s.Name
	case s.Uses != "":
		return "Run " + s.Uses
	}
	for line := range strings.Lines(s.Run) {
		if line = strings.TrimSpace(line); line != "" {
			return "Run " + line
		}
	}
	return ""
}

// openHistory opens the store and the logs of a data folder that no server uses now.
func openHistory(ctx context.Context, c *config, log *slog.Logger) (history, func(), error) {
	dir := c.get("data-dir")
	s := &server{c: c, log: log}
	if err := s.lock(filepath.Join(dir, "lock")); err != nil {
		return history{}, nil, fmt.Errorf("%w; stop it first", err)
	}
	closeAll := func() { s.close() }
	st, err := store.Open(ctx, databaseOf(c, log))
	if err != nil {
		closeAll()
		return history{}, nil, err
	}
	s.closers = append(s.closers, st.Close)
	logs, err := joblog.Open(joblog.Config{Dir: filepath.Join(dir, "logs")})
	if err != nil {
		closeAll()
		return history{}, nil, err
	}
	s.closers = append(s.closers, logs.Close)
	return history{st, logs}, closeAll, nil
}
