package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// plan does a plan job: it gets the event's commit, and compiles the workflows that the event starts.
func (d *Dispatcher) plan(ctx context.Context, l *Lease) {
	log := d.c.Log.With("run", l.Run.ID, "job", l.Job.ID, "event", l.Run.Event.Name, "repo", l.Run.Event.Repo.FullName)
	began := d.c.Now()
	work, stop := context.WithCancelCause(ctx)
	endBeats := d.keep(ctx, l, stop)
	limited, done := context.WithTimeoutCause(work, d.c.Plan, fmt.Errorf("%s could not be read within %s", l.Run.Event.Repo.FullName, d.c.Plan))
	runs, planned, err := d.planJob(limited, l, log)
	if late := context.Cause(limited); err != nil && work.Err() == nil && late != nil {
		err = tgr.Errorf("plan", tgr.Unavailable, "%w", late) // not what it made of git's last words
	}
	done()
	cause := context.Cause(work)
	endBeats()
	stop(nil)

	record, done := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer done()
	var cancel *CancelError
	switch code := tgr.CodeOf(err); {
	case err == nil:
		log.Info("planned", "workflows", len(planned.Runs), "reason", planned.Reason, "took", d.c.Now().Sub(began))
		if d.c.Observe.Planned != nil {
			d.c.Observe.Planned(d.c.Now().Sub(began))
		}
		for _, run := range runs {
			d.settle(record, run)
		}
		if d.c.Annotate != nil && len(runs) == len(planned.Runs) {
			for i, run := range runs {
				ev := planned.Event
				if own := planned.Runs[i].Event; own != nil {
					ev = *own
				}
				d.c.Annotate.Annotate(run, ev, planned.Runs[i])
			}
		}
	case errors.Is(cause, ErrLeaseLost):
		log.Warn("the plan job was given to another worker; what happened here is dropped")
		return
	case errors.As(cause, &cancel):
		d.finish(record, l, JobResult{Conclusion: tgr.Cancelled, Reason: cancel.Reason}, log)
	case ctx.Err() != nil:
		d.release(record, l, "the server was stopped", true, log)
	case code == tgr.NotFound || code == tgr.Invalid: // the commit or the repository is gone
		log.Error("the event could not be planned", "blame", tgr.BlameUser, "error", err)
		d.faulted(tgr.BlameUser)
		d.finish(record, l, JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameUser, Reason: err.Error()}, log)
	default:
		log.Error("our fault: planning failed", "try", l.Job.Tries, "error", err)
		d.faulted(tgr.BlameOurs)
		d.release(record, l, err.Error(), false, log)
	}
	d.settle(record, l.Run.ID)
}

// planJob compiles, and stores what it has compiled. The error is in the plan job's log.
func (d *Dispatcher) planJob(ctx context.Context, l *Lease, log *slog.Logger) (runs []tgr.RunID, p Planned, err error) {
	out, err := d.c.Logs.Create(l.Job.ID, l.Job.Tries)
	if err != nil {
		return nil, p, fmt.Errorf("create the plan job's log: %w", err)
	}
	s := d.newSink(l, out, log)
	defer func() {
		if err != nil {
			s.say("##[error]%v", err)
		}
		err = errors.Join(err, s.close())
	}()
	if p, err = d.compileAll(ctx, l.Run.Event, s); err != nil {
		return nil, p, err
	}
	runs, err = d.c.Runs.Planned(ctx, l.Job.ID, l.Token, p)
	return runs, p, err
}

// finish records how a job ended, when nothing more can be done about an error than to log it: the lease will expire.
func (d *Dispatcher) finish(ctx context.Context, l *Lease, r JobResult, log *slog.Logger) {
	if err := d.c.Jobs.Finish(ctx, l.Job.ID, l.Token, r); err != nil {
		log.Error("record the end of a job", "error", err)
		return
	}
	if d.c.Learn != nil && l.Job.Kind == tgr.WorkJob {
		d.c.Learn.Finished(l.Run.ID, l.Job.ID)
	}
	if d.c.Observe.Finished != nil && l.Job.Kind == tgr.WorkJob {
		d.c.Observe.Finished(l.Run, l.Job, r)
	}
}

// compileAll compiles what an event starts.
func (d *Dispatcher) compileAll(ctx context.Context, ev tgr.Event, s *sink) (Planned, error) {
	p, err := d.compileEvent(ctx, ev, s)
	if err != nil || !d.c.Target || ev.Name != "pull_request" {
		return p, err
	}
	target, err := d.compileEvent(ctx, targetOf(ev), s)
	switch {
	case tgr.CodeOf(err) == tgr.NotFound:
		s.say("pull_request_target: not started: %s", tgr.MessageOf(err))
		return p, nil
	case err != nil:
		return Planned{}, err
	}
	p.Awaited = target.Awaited
	for _, run := range target.Runs {
		run.Event = &target.Event
		if slices.ContainsFunc(p.Runs, func(r PlannedRun) bool { return r.WorkflowName == run.WorkflowName }) {
			run.WorkflowName = fmt.Sprintf("%.70s (%s)", run.WorkflowName, target.Event.Name)
		}
		p.Runs = append(p.Runs, run)
	}
	return p, nil
}

// targetOf is the pull_request_target event of a pull_request. What it runs is always what the default branch says now: an old
// branch that is the base of a pull request may have workflows whose holes were closed since.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/events-that-trigger-workflows#pull_request_target
func targetOf(ev tgr.Event) tgr.Event {
	ev.Name = "pull_request_target"
	ev.Ref, ev.SHA, ev.Tree = defaultRef(ev.Repo), "", ""
	return ev
}

// compileEvent compiles every workflow of the event's commit that the event starts. One that cannot be compiled
// becomes a run that failed, and does not keep the others from running.
func (d *Dispatcher) compileEvent(ctx context.Context, ev tgr.Event, s *sink) (Planned, error) {
	if ev.Deleted {
		return Planned{Event: ev, Reason: ev.Ref + " was deleted: nothing runs"}, nil
	}
	skip, tip := skipReason(ev), ofDefaultBranch(ev)
	if skip != "" && !tip {
		return Planned{Event: ev, Reason: skip}, nil
	}
	s.say("Fetching %s at %s", ev.Repo.FullName, or(ev.SHA, ev.Ref))
	ev, err := d.c.Source.Fetch(ctx, ev)
	if err != nil {
		return Planned{}, err
	}
	files, err := d.c.Source.Workflows(ctx, ev)
	if err != nil {
		return Planned{}, err
	}
	s.say("%d workflow files at %s", len(files), ev.SHA)
	p := Planned{Event: ev, Reason: skip}
	if tip {
		p.Awaited = d.awaited(ev, files, s)
	}
	if skip != "" {
		return p, nil
	}
	trigger := d.triggerOf(ctx, ev)
	load := &loader{ctx: ctx, source: d.c.Source, ev: ev, files: files}
	var reasons []string
	why := "there is no such workflow at " + ev.Ref // of the one that somebody asked for
	for _, f := range files {
		run, reason := d.compile(ev, f, trigger, load.load)
		if load.fault != nil {
			return Planned{}, load.fault
		}
		if run == nil {
			s.say("%s: not started: %s", f.Path, reason)
			reasons = append(reasons, f.Path+": "+reason)
			if asked := dispatched(ev); asked == f.Path || asked == path.Base(f.Path) {
				why = reason
			}
			continue
		}
		if run.Reason != "" {
			s.say("##[error]%s", run.Reason)
		} else {
			s.say("%s: %d jobs", f.Path, len(run.Jobs))
		}
		p.Runs = append(p.Runs, *run)
	}
	if len(p.Runs) > 0 && ev.Name == "pull_request" { // the event does not say, and to ask costs a fetch
		switch message, err := d.c.Source.Message(ctx, ev); {
		case err != nil && tgr.CodeOf(err) != tgr.NotFound:
			return Planned{}, err
		case skipMark(message) != "":
			p.Runs, p.Reason = nil, skippedBy(skipMark(message))
			return p, nil
		}
	}
	distinguish(p.Runs)
	switch asked := dispatched(ev); {
	case len(p.Runs) == 0 && ev.Name == "workflow_dispatch" && asked != "": // nobody starts by hand what is to be skipped
		return Planned{}, tgr.Errorf("plan", tgr.NotFound, "%s cannot be started: %s", asked, why)
	case len(files) == 0:
		p.Reason = "the commit has no workflow in .github/workflows"
	case len(p.Runs) == 0:
		p.Reason = "no workflow is started by this event: " + strings.Join(reasons, "; ")
	}
	return p, nil
}

// distinguish adds the file to the name of workflows that share one: a commit status has nothing but its name, and the
// success of one must not hide the failure of another.
func distinguish(runs []PlannedRun) {
	n := map[string]int{}
	for _, r := range runs {
		n[r.WorkflowName]++
	}
	for i := range runs {
		if r := &runs[i]; n[r.WorkflowName] > 1 {
			r.WorkflowName = fmt.Sprintf("%.40s [%.30s]", r.WorkflowName, path.Base(r.WorkflowFile))
		}
	}
}

// skipReason is why nothing runs of a pushed commit whose message says so; "" for all others.
func skipReason(ev tgr.Event) string {
	var p struct {
		Head struct {
			Message string `json:"message"`
		} `json:"head_commit"`
	}
	if ev.Name != "push" || json.Unmarshal(ev.Payload, &p) != nil {
		return ""
	}
	if mark := skipMark(p.Head.Message); mark != "" {
		return skippedBy(mark)
	}
	return ""
}

func skippedBy(mark string) string { return "the commit's message says " + mark + ": nothing runs" }

// skipMark is what a commit's message says that keeps workflows of push and pull_request from running, or "".
//
// https://docs.github.com/en/actions/how-tos/manage-workflow-runs/skip-workflow-runs
func skipMark(message string) string {
	for _, mark := range []string{"[skip ci]", "[ci skip]", "[no ci]", "[skip actions]", "[actions skip]"} {
		if strings.Contains(message, mark) {
			return mark
		}
	}
	// The last of the trailers, before which are two empty lines.
	message = strings.TrimSpace(strings.ReplaceAll(message, "\r\n", "\n"))
	trailers := message[strings.LastIndex(message, "\n\n")+1:]
	last := trailers[strings.LastIndex(trailers, "\n")+1:]
	if strings.HasSuffix(strings.TrimSuffix(message, trailers), "\n\n") && (last == "skip-checks: true" || last == "skip-checks:true") {
		return last
	}
	return ""
}

// compile compiles one workflow file. Without a run, the reason says which filter said no.
func (d *Dispatcher) compile(ev tgr.Event, f File, t workflow.Trigger, load func(string) (workflow.Loaded, error)) (run *PlannedRun, reason string) {
	fail := func(reason string) (*PlannedRun, string) {
		return &PlannedRun{WorkflowFile: f.Path, WorkflowName: f.Path, Conclusion: tgr.StartupFailure, Reason: reason}, ""
	}
	asked := dispatched(ev)
	if asked != "" && asked != f.Path && asked != path.Base(f.Path) {
		return nil, "it is not " + asked + ", which was asked for"
	}
	if f.Err != nil {
		return fail(f.Err.Error())
	}
	w, problems := workflow.Parse(f.Path, f.Data)
	if reason := firstErrors(problems); reason != "" {
		// Nobody knows what would have started it: say so on every push and pull request, as GitHub does.
		if ev.Name != "push" && ev.Name != "pull_request" && asked == "" {
			return nil, reason
		}
		return fail(reason)
	}
	m := w.Match(t)
	if m.Err != nil {
		return fail(m.Err.Error())
	}
	if !m.OK {
		return nil, m.Reason
	}
	plan, problems := workflow.Compile(w, workflow.Options{Trigger: t, Load: load, Repo: ev.Repo.FullName})
	if reason := firstErrors(problems); reason != "" {
		return fail(reason)
	}
	if d.c.Edit != nil {
		if err := d.c.Edit(plan); err != nil {
			return nil, err.Error()
		}
	}
	data, err := json.Marshal(plan)
	if err != nil {
		return fail(err.Error())
	}
	run = &PlannedRun{WorkflowFile: f.Path, WorkflowName: plan.Name, Plan: data, Source: f.Data, Hold: d.c.Hold(ev)}
	scope := &workflow.Scope{GitHub: withEvent(d.githubContext(tgr.Run{Event: ev, WorkflowFile: f.Path, WorkflowName: plan.Name}, ""), payloadOf(ev, plan)), Inputs: plan.Inputs}
	if run.Title, err = plan.EvalRunName(scope); err != nil {
		return fail(err.Error())
	}
	g := &run.Group
	if g.Name, g.CancelOther, g.QueueMax, err = plan.EvalConcurrency(scope); err != nil {
		return fail(err.Error())
	}
	run.Jobs = pendingRows(&frame{plan: plan})
	return run, ""
}

// triggerOf is the event as on: sees it.
func (d *Dispatcher) triggerOf(ctx context.Context, ev tgr.Event) workflow.Trigger {
	var p struct {
		Action   string          `json:"action"`
		Inputs   map[string]any  `json:"inputs"`
		Schedule string          `json:"schedule"`
		Workflow json.RawMessage `json:"workflow"` // of workflow_run an object; of workflow_dispatch the file
		Run      struct {
			HeadBranch string `json:"head_branch"`
		} `json:"workflow_run"`
	}
	if len(ev.Payload) > 0 {
		// What does not decode is not there: the webhook's own decoder has refused what is not JSON.
		_ = json.Unmarshal(ev.Payload, &p)
	}
	var of struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(p.Workflow, &of)
	t := workflow.Trigger{
		Event: ev.Name, Action: ev.Action, Ref: ev.Ref, BaseRef: ev.BaseRef, HeadRef: or(ev.HeadRef, p.Run.HeadBranch), Deleted: ev.Deleted,
		Workflow: of.Name, Cron: p.Schedule,
		Changed: sync.OnceValues(func() ([]string, error) { return d.c.Source.Changed(ctx, ev) }),
	}
	if ev.Name == "repository_dispatch" {
		t.EventType = p.Action
	}
	if ev.Name == "workflow_dispatch" {
		t.Inputs = map[string]string{}
		for k, v := range p.Inputs {
			if s, ok := v.(string); ok {
				t.Inputs[k] = s
			} else if v != nil {
				t.Inputs[k] = fmt.Sprint(v)
			}
		}
	}
	return t
}

// dispatched is the workflow file that a workflow_dispatch or schedule event asks for; "" for any other event.
func dispatched(ev tgr.Event) string {
	var p struct {
		Workflow string `json:"workflow"`
	}
	if ev.Name != "workflow_dispatch" && ev.Name != "schedule" || json.Unmarshal(ev.Payload, &p) != nil {
		return ""
	}
	return p.Workflow
}

// firstErrors joins the errors among problems, the first few in full; "" if there is none.
func firstErrors(problems []workflow.Problem) string {
	const shown = 10
	var lines []string
	more := 0
	for _, p := range problems {
		switch {
		case p.Severity != workflow.SeverityError:
		case len(lines) == shown:
			more++
		default:
			lines = append(lines, p.String())
		}
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// planCache keeps the decoded plans of the runs that are worked on. Its zero value is ready; safe for concurrent use.
type planCache struct {
	mu    sync.Mutex
	plans map[tgr.RunID]*workflow.Plan
}

const cachedPlans = 64

func (c *planCache) get(run tgr.Run) (*workflow.Plan, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.plans[run.ID]; ok {
		return p, nil
	}
	p := new(workflow.Plan)
	if err := json.Unmarshal(run.Plan, p); err != nil {
		return nil, tgr.Errorf("plan.read", tgr.Internal, "plan of run %d: %w", run.ID, err)
	}
	if p.Version != workflow.PlanVersion {
		return nil, tgr.Errorf("plan.read", tgr.Internal, "run %d has a plan of version %d, and this server knows %d", run.ID, p.Version, workflow.PlanVersion)
	}
	if c.plans == nil || len(c.plans) >= cachedPlans {
		c.plans = map[tgr.RunID]*workflow.Plan{} // simpler than an eviction order, and as good for decoded rows
	}
	c.plans[run.ID] = p
	return p, nil
}
