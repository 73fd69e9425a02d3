package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/joblog"
	"github.com/terraphim/tgr/llm"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/web"
)

// advisor finds out about runs beside running them: who has read their workflow, and why their jobs failed. It waits for
// nobody and nobody waits for it: what it cannot do in time it leaves out, and says so.
type advisor struct {
	llm     *llm.Service
	store   *store.Store
	logs    *joblog.Store
	metrics *web.Metrics
	log     *slog.Logger
	changed func(tgr.RunID)
	dir     string

	rules, models chan func(context.Context) // what is to be done: quick things, and questions to a model

	mu    sync.Mutex
	notes map[tgr.RunID]tgr.Notes // a few, so that a page reads no file
	wrote int
}

// Bounds of what waits and of what is kept.
const (
	waitingAdvice = 256
	notesInMemory = 256
	notesOnDisk   = 10_000
	logForAdvice  = 200_000 // lines
)

var (
	_ dispatch.Annotator = (*advisor)(nil)
	_ web.Advisor        = (*advisor)(nil)
)

func newAdvisor(s *server, service *llm.Service) *advisor {
	return &advisor{llm: service, store: s.store, logs: s.logs, metrics: s.metrics, log: s.log, changed: s.watch.changed,
		dir: filepath.Join(s.c.get("data-dir"), "notes"), notes: map[tgr.RunID]tgr.Notes{},
		rules: make(chan func(context.Context), waitingAdvice), models: make(chan func(context.Context), waitingAdvice)}
}

// run does what waits until ctx ends. What was not done by then is not done.
func (a *advisor) run(ctx context.Context) error {
	if a.llm.Enabled() {
		for _, st := range a.llm.Check(ctx) {
			if st.Fault != nil {
				a.log.Warn("a language model cannot be asked; workflows are compiled as ever", "error", st.Fault)
			} else {
				a.log.Info("a language model annotates and explains; it decides nothing", "model", st.Model, "digest", st.Model.Digest, "cloud", st.Model.Cloud)
			}
		}
		if err := a.llm.Warm(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("the language model was not loaded ahead", "error", err)
		}
	}
	var wg sync.WaitGroup
	for _, work := range []<-chan func(context.Context){a.rules, a.models} {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case do := <-work:
					do(ctx)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// later puts work in a queue; false: there is too much already.
func (a *advisor) later(queue chan func(context.Context), do func(context.Context)) bool {
	select {
	case queue <- do:
		return true
	default:
		return false
	}
}

// Annotate implements dispatch.Annotator.
func (a *advisor) Annotate(run tgr.RunID, ev tgr.Event, p dispatch.PlannedRun) {
	if len(p.Plan) == 0 {
		return
	}
	read := func(ctx context.Context) {
		plan, err := llmPlan(ev, p)
		if err != nil {
			a.log.Error("read a plan for the language model", "run", run, "error", err)
			return
		}
		a.parsed(run, a.llm.Parse(ctx, plan))
	}
	queue := a.models
	if !a.llm.Enabled() {
		queue = a.rules // no more than to write down that it is so
	}
	if !a.later(queue, read) {
		a.parsed(run, tgr.Provenance{By: tgr.ByCompiler, Reason: string(llm.Busy), Prompt: llm.ParsePrompt})
	}
}

// parsed writes down who has read a run's workflow.
func (a *advisor) parsed(run tgr.RunID, p tgr.Provenance) {
	var fields []string
	for _, d := range p.Differs {
		fields = append(fields, d.Field)
	}
	a.metrics.CountParsed(p.By, p.Reason, fields...)
	level := slog.LevelInfo
	if p.Reason == string(llm.Disabled) {
		level = slog.LevelDebug
	}
	a.log.Log(context.Background(), level, "workflow read", "run", run, "by", p.By, "reason", p.Reason, "model", p.Model, "took", p.Took, "plan", p.PlanHash)
	a.update(run, func(n *tgr.Notes) { n.Parsed = p })
}

// finished explains a job that failed: by rules at once, by a model when it gets to it.
func (a *advisor) finished(run tgr.Run, job tgr.Job, r dispatch.JobResult) {
	uses := missingAction(r)
	if !r.Conclusion.Failed() || r.Blame == tgr.BlameOurs && uses == "" {
		return
	}
	job.Conclusion, job.Steps = r.Conclusion, r.Steps
	ok := a.later(a.rules, func(ctx context.Context) {
		f, err := a.failure(ctx, run, job)
		if err != nil {
			a.log.Warn("read the log of a failed job", "job", job.ID, "error", err)
			return
		}
		explain := func(ctx context.Context) {
			e := a.llm.Explain(ctx, f)
			e.Instead = a.instead(run, job, uses)
			a.explained(ctx, run.ID, e)
		}
		f.NoModel = true
		explain(ctx)
		if !a.llm.Enabled() {
			return
		}
		f.NoModel = false
		if !a.later(a.models, explain) {
			a.log.Warn("too many failures wait for the language model; this one has the rules' explanation alone", "job", job.ID)
		}
	})
	if !ok {
		a.log.Warn("too many failures at once; this one is not explained", "job", job.ID)
	}
}

// explained writes down why a job failed, and has it reported.
func (a *advisor) explained(ctx context.Context, run tgr.RunID, e tgr.Explanation) {
	a.update(run, func(n *tgr.Notes) {
		n.Explanations = slices.DeleteFunc(n.Explanations, func(old tgr.Explanation) bool { return old.Job == e.Job })
		n.Explanations = append(n.Explanations, e)
	})
	if err := a.store.Refresh(ctx, run); err != nil && ctx.Err() == nil {
		a.log.Warn("report the explanation of a failure", "run", run, "error", err)
	}
}

// failure collects what is known of a failed job.
func (a *advisor) failure(ctx context.Context, run tgr.Run, job tgr.Job) (llm.Failure, error) {
	f := llm.Failure{Job: job.ID, Name: job.Name, Forked: run.Event.Forked}
	for _, st := range job.Steps {
		if st.Conclusion.Failed() {
			f.Step, f.Number = st.Name, st.Number
			break
		}
	}
	var err error
	if f.Log, err = a.read(ctx, job.ID); err != nil {
		return f, err
	}
	f.Known = a.successes(ctx, run, job)
	return f, nil
}

// read is the end of a job's log.
func (a *advisor) read(ctx context.Context, job tgr.JobID) ([]llm.LogLine, error) {
	id, err := a.store.LogOf(ctx, job)
	if err != nil {
		return nil, err
	}
	var lines []llm.LogLine
	for l, err := range a.logs.Read(ctx, id, joblog.Range{}) {
		if err != nil {
			return lines, err
		}
		if len(lines) == logForAdvice { // the numbers have to stay those of the log
			return lines, nil
		}
		lines = append(lines, llm.LogLine{Step: l.Step, Text: l.Text})
	}
	return lines, nil
}

// successes is what up to three earlier successes of the same job have printed. A fork's successes explain forks alone:
// otherwise a stranger could teach the server to overlook an error.
func (a *advisor) successes(ctx context.Context, run tgr.Run, job tgr.Job) llm.Known {
	const runs, logs = 20, 3
	var known llm.Known
	list, err := a.store.Runs(ctx, store.RunFilter{Repo: run.Event.Repo.FullName, Workflow: run.WorkflowFile, Before: run.ID, Limit: runs})
	if err != nil {
		a.log.Warn("look for earlier successes", "run", run.ID, "error", err)
		return known
	}
	learned := 0
	for _, r := range list {
		if learned == logs || r.Event.Forked && !run.Event.Forked {
			continue
		}
		jobs, err := a.store.Jobs(ctx, r.ID, r.Attempt)
		if err != nil {
			continue
		}
		for _, j := range jobs {
			if j.Key != job.Key || j.Name != job.Name || j.Conclusion != tgr.Success {
				continue
			}
			if lines, err := a.read(ctx, j.ID); err == nil && len(lines) > 0 {
				known.Learn(lines)
				learned++
			}
		}
	}
	return known
}

// Answer implements web.Advisor.
func (a *advisor) Answer(ctx context.Context, run tgr.Run, question string) (tgr.Claim, error) {
	n, _ := a.Notes(run.ID)
	c, err := a.llm.AnswerTo(ctx, llm.Question{Text: question, About: n.Explanations, Forked: run.Event.Forked})
	var f *llm.Fault
	if errors.As(err, &f) {
		code := tgr.Unavailable
		if f.Reason == llm.Busy || f.Reason == llm.Breaker {
			code = tgr.Limit
		}
		return c, tgr.Errorf("ask", code, "the language model gives no answer: %s", a.llm.Redactor().Say(strings.TrimPrefix(f.Error(), "llm: "), 300))
	}
	return c, err
}

// why is a sentence about a failed job for the pull request's comment, which escapes it; "" where nothing is known.
func (a *advisor) why(job tgr.Job) string {
	n, ok := a.Notes(job.Run)
	if !ok {
		return ""
	}
	for _, e := range n.Explanations {
		if e.Job != job.ID {
			continue
		}
		var s []string
		for _, l := range e.Lines {
			if l.N == e.Cause {
				s = append(s, fmt.Sprintf("Likely cause, line %d of the log: %s", l.N, strings.TrimSpace(unmarked(l.Text))))
			}
		}
		for _, c := range e.Claims[:min(len(e.Claims), 1)] {
			s = append(s, fmt.Sprintf("%s thinks, from line %d: %s %s", e.By, c.Lines[0].N, c.Text, c.Fix))
		}
		return strings.TrimSpace(strings.Join(s, "\n\n"))
	}
	return ""
}

// Notes implements web.Advisor.
func (a *advisor) Notes(run tgr.RunID) (tgr.Notes, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.load(run)
}

// load reads the notes of a run; a.mu is held.
func (a *advisor) load(run tgr.RunID) (tgr.Notes, bool) {
	if n, ok := a.notes[run]; ok {
		return n, true
	}
	data, err := os.ReadFile(a.file(run))
	if errors.Is(err, fs.ErrNotExist) {
		return tgr.Notes{}, false
	}
	var n tgr.Notes
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil {
		a.log.Warn("read the notes of a run", "run", run, "error", err)
		return tgr.Notes{}, false
	}
	a.remember(run, n)
	return n, true
}

func (a *advisor) remember(run tgr.RunID, n tgr.Notes) {
	if len(a.notes) >= notesInMemory {
		clear(a.notes)
	}
	a.notes[run] = n
}

func (a *advisor) file(run tgr.RunID) string { return filepath.Join(a.dir, run.String()+".json") }

// update changes the notes of a run. They are files and no rows: whatever is in them can be found out again.
func (a *advisor) update(run tgr.RunID, fn func(*tgr.Notes)) {
	a.mu.Lock()
	n, _ := a.load(run)
	n.Explanations = slices.Clone(n.Explanations) // others may be reading the old ones
	fn(&n)
	a.remember(run, n)
	err := a.write(run, n)
	a.mu.Unlock()
	if err != nil {
		a.log.Warn("write the notes of a run", "run", run, "error", err)
	}
	a.changed(run)
}

func (a *advisor) write(run tgr.RunID, n tgr.Notes) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	if a.wrote++; a.wrote%1000 == 1 {
		a.prune()
	}
	tmp := a.file(run) + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, a.file(run))
}

// prune deletes the notes of the oldest runs beyond the bound.
func (a *advisor) prune() {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return
	}
	var runs []int
	for _, e := range entries {
		if n, err := strconv.Atoi(strings.TrimSuffix(e.Name(), ".json")); err == nil {
			runs = append(runs, n)
		}
	}
	slices.Sort(runs)
	for _, n := range runs[:max(0, len(runs)-notesOnDisk)] {
		_ = os.Remove(a.file(tgr.RunID(n))) // the next time will find it again
	}
}
