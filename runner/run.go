package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// run is one job while it runs. Whoever holds mu owns it: the goroutine of Run, one of a step in the background, or an
// output for what it is given.
type run struct {
	mu     sync.Mutex
	config Config
	job    Job
	mask   *masker

	steps   []*record // in the order of execution
	current *record   // the step that runs
	static  statics   // contexts that do not change
	used    bool      // a step has run: the workspace may hold files

	status   tgr.Conclusion // of the job so far: success or failure
	clock    clock
	result   Result
	remote   map[string]*fetched // repositories of remote actions by owner/name@ref
	matchers []*matcher
	top      *scope
	crew     crew                      // the steps in the background
	site     site                      // where steps run
	engine   *engine                   // the machine's container engine, once it is needed
	boxes    containers                // of the job
	subjects []subject                 // artifacts that steps have declared
	made     struct{ units, dirs int } // so far: steps, and directories of command files
	taped    *taped                    // nil: the job does not outlive this process
	lines    int                       // of the log, so far
	mute     bool                      // lines are read again for what they did
}

// record is one step as it is shown.
type record struct {
	tgr.Step
	annotated map[string]int // annotations so far by level
	at        time.Time      // of the lines that are being logged; zero: now
}

// Run runs one job to its end and returns how it ended. A job that fails is no error: the error is for faults of
// ours, such as a machine that died, and the Result then holds what is known.
//
// When ctx ends, the running step is interrupted unless its condition holds for a cancelled job; the steps whose
// conditions hold, and the post steps, still run, for at most the instance's CancelTimeout. The context's cause is
// the Result's Reason; ErrTimeout as its cause, or the instance's TimeoutMinutes, make the job timed_out.
func Run(ctx context.Context, c Config, j Job) (Result, error) {
	if j.Secrets["ACTIONS_STEP_DEBUG"] == "true" || j.Vars["ACTIONS_STEP_DEBUG"] == "true" {
		j.Debug = true
	}
	r := &run{
		config: c.orDefaults(j),
		job:    j,
		status: tgr.Success,
		remote: map[string]*fetched{},
		crew:   crew{slots: make(chan struct{}, maxBackground)},
	}
	ago := r.tape(c.Resume)
	r.config.Machine = shared{r.config.Machine, &r.mu}
	r.site = onMachine{r}
	r.mask = newMasker(r.config.Limits.Masks, r.config.Limits.MaskBytes)
	r.clock.start(ctx, j.Instance, ago)
	defer r.clock.stop()

	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.all()
	r.endBackground()
	r.finish(err)
	return r.result, err
}

// all runs every step of the job. An error is a fault of ours and ends it at once.
func (r *run) all() error {
	setUp := r.add(tgr.Step{ID: "__setup", Name: "Set up job"})
	r.begin(setUp)
	units, err := r.setUp(setUp)
	switch {
	case errors.Is(err, errCancelled):
		r.end(setUp, ended(tgr.Cancelled, r.clock.reason(r.config.Runner.Name)))
	case isOurs(err):
		r.end(setUp, ended(tgr.Failure, err.Error()))
		return err
	case err != nil:
		r.error(setUp, err.Error())
		r.blame(blameOf(err), err.Error())
		r.status = tgr.Failure
		r.end(setUp, ended(tgr.Failure, err.Error()))
	default:
		r.end(setUp, ended(tgr.Success, ""))
		err := r.inContainers(units)
		r.stopContainers()
		if err != nil {
			return err
		}
	}
	return r.complete()
}

// allSteps runs the pre steps, the steps and the post steps.
func (r *run) allSteps(units []*unit) error {
	for _, u := range units {
		if u.pre != nil {
			if err := r.preStep(u); err != nil {
				return err
			}
		}
	}
	for _, u := range units {
		if err := r.step(r.clock.hard, u); err != nil {
			return err
		}
	}
	if err := r.joinAll(); err != nil {
		return err
	}
	for i := len(r.top.posts) - 1; i >= 0; i-- {
		if err := r.postStep(r.top.posts[i]); err != nil {
			return err
		}
	}
	return nil
}

// complete is the last step: it evaluates the job's outputs.
func (r *run) complete() error {
	rec := r.add(tgr.Step{ID: "__complete", Name: "Complete job"})
	r.begin(rec)
	r.result.Outputs = map[string]string{}
	conclusion, size := tgr.Success, 0
	for _, o := range r.job.Job.Outputs {
		value, err := r.text(o.Value, r.top, nil, r.job.Job.Pos, "outputs."+o.Name)
		if err != nil {
			if blameOf(err) == tgr.BlameOurs {
				return err
			}
			r.error(rec, err.Error())
			r.blame(tgr.BlameWorkflow, err.Error())
			r.status, conclusion = tgr.Failure, tgr.Failure
			continue
		}
		if value == "" {
			continue
		}
		if r.mask.mute || r.mask.contains(value) {
			r.warn(rec, fmt.Sprintf("Skip output '%s' since it may contain secret.", o.Name))
			continue
		}
		if size += workflow.OutputBytes(o.Name, value); size > workflow.MaxOutputs {
			err := userError("the job's outputs have more than %d bytes, in UTF-16, with '%s': none of them is kept", workflow.MaxOutputs, o.Name)
			r.error(rec, err.Error())
			r.blame(tgr.BlameUser, err.Error())
			r.status, conclusion = tgr.Failure, tgr.Failure
			clear(r.result.Outputs)
			break
		}
		r.result.Outputs[o.Name] = value
	}
	r.log(rec, "Job result: "+r.jobStatus())
	r.end(rec, ended(conclusion, ""))
	return nil
}

// finish fills in the result.
func (r *run) finish(err error) {
	res := &r.result
	for _, rec := range r.steps {
		if err != nil && rec.Status != tgr.Completed { // what a fault of ours has cut off
			rec.Conclusion = tgr.Cancelled
			if rec.Status == tgr.InProgress {
				rec.Conclusion, rec.Reason = tgr.Failure, err.Error()
				rec.Finished = r.config.Now()
			}
			rec.Status, rec.Outcome = tgr.Completed, rec.Conclusion
		}
	}
	res.Steps = r.snapshot()
	slices.SortStableFunc(res.Summaries, func(a, b Summary) int { return a.Step - b.Step })
	r.config.Sink.Steps(r.snapshot())
	switch cause := r.clock.cause(); {
	case err != nil:
		res.Conclusion, res.Blame, res.Reason = tgr.Failure, tgr.BlameOurs, err.Error()
	case cause != nil && errors.Is(cause, ErrTimeout):
		res.Conclusion, res.Blame, res.Reason = tgr.TimedOut, tgr.BlameUser, r.clock.reason(r.config.Runner.Name)
	case cause != nil:
		res.Conclusion, res.Reason = tgr.Cancelled, r.clock.reason(r.config.Runner.Name)
		if res.Blame != "" && r.status == tgr.Success {
			res.Blame = ""
		}
	default:
		res.Conclusion = r.status
		if r.status == tgr.Success { // what failed was allowed to
			res.Blame, res.Reason = "", ""
		}
	}
	if res.Reason = r.show(res.Reason, 4096); r.mask.mute {
		res.Reason = "there are too many values to mask, so that what happened cannot be shown"
	}
}

// blame notes whose fault it is that the job fails. The first to be blamed stays.
func (r *run) blame(b tgr.Blame, reason string) {
	if r.result.Blame == "" {
		r.result.Blame, r.result.Reason = b, reason
	}
}

// add appends a step to those that are shown.
func (r *run) add(s tgr.Step) *record {
	s.Number, s.Status = len(r.steps)+1, tgr.Pending
	s.Name = r.show(s.Name, 255)
	rec := &record{Step: s, annotated: map[string]int{}}
	r.steps = append(r.steps, rec)
	return rec
}

// begin, and end, move a step on and tell the sink.
func (r *run) begin(rec *record) {
	rec.Status, rec.Started = tgr.InProgress, r.config.Now()
	r.current = rec
	r.config.Sink.Steps(r.snapshot())
}

func (r *run) end(rec *record, e ending) {
	rec.Status, rec.Outcome, rec.Conclusion = tgr.Completed, e.outcome, e.conclusion
	rec.Reason = r.show(e.reason, 4096)
	rec.Finished = r.config.Now()
	if rec.Started.IsZero() {
		rec.Started = rec.Finished
	}
	r.config.Log.Debug("step", "number", rec.Number, "conclusion", string(e.conclusion), "took", rec.Finished.Sub(rec.Started))
	r.config.Sink.Steps(r.snapshot())
}

func (r *run) snapshot() []tgr.Step {
	steps := make([]tgr.Step, len(r.steps))
	for i, rec := range r.steps {
		steps[i] = rec.Step
	}
	return steps
}

// setUp prepares the machine and the contexts, fetches remote actions and makes the units of the job's steps.
func (r *run) setUp(rec *record) ([]*unit, error) {
	for _, name := range slices.Sorted(maps.Keys(r.job.Secrets)) {
		if err := r.addMask(r.job.Secrets[name]); err != nil {
			return nil, err
		}
	}
	if err := r.addMask(r.job.Token); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(r.config.ActionEnv)) {
		if strings.HasSuffix(name, "_TOKEN") {
			if err := r.addMask(r.config.ActionEnv[name]); err != nil {
				return nil, err
			}
		}
	}
	r.top = &scope{steps: expr.NewObject(), world: &world{}}
	if err := r.static.fill(r); err != nil {
		return nil, err
	}
	r.describe(rec)
	if err := r.jobEnv(); err != nil {
		return nil, err
	}
	if err := r.fits(); err != nil {
		return nil, err
	}
	if err := r.prepareMachine(); err != nil {
		return nil, err
	}
	if err := r.wantContainers(); err != nil {
		return nil, err
	}
	units, err := r.units(r.job.Job.Steps, r.top, r.job.Plan.File)
	if err != nil {
		return nil, err
	}
	if err := r.fetchAll(rec, units, 0); err != nil {
		return nil, err
	}
	if len(r.allBoxes()) > 0 {
		r.boxes.rec = r.add(tgr.Step{ID: "__containers", Name: "Initialize containers"})
	}
	for _, u := range units {
		if u.pre = r.preOf(u); u.pre != nil {
			u.pre.rec = r.add(tgr.Step{ID: u.src.ID, Name: "Pre " + r.early(u)})
		}
	}
	for _, u := range units {
		u.rec = r.add(tgr.Step{ID: visibleID(u.src.ID), Name: r.early(u)})
	}
	r.log(rec, "Complete job name: "+r.job.Instance.Name)
	return units, nil
}

// describe logs what the job runs on.
func (r *run) describe(rec *record) {
	r.log(rec, "Runner name: '"+r.config.Runner.Name+"'")
	if notes := r.config.Runner.Notes; len(notes) > 0 {
		r.log(rec, "##[group]Machine")
		for _, n := range notes {
			r.log(rec, n)
		}
		r.log(rec, "##[endgroup]")
	}
	r.log(rec, "Prepare workflow directory")
	r.log(rec, "Prepare all required actions")
}

// fits refuses a job that wants another kind of machine: what it would do here says nothing about it.
func (r *run) fits() error {
	about := r.config.Runner
	for _, label := range r.job.Instance.RunsOn {
		l := strings.ToLower(label)
		other := strings.HasPrefix(l, "windows") && about.OS != "Windows" || strings.HasPrefix(l, "macos") && about.OS != "macOS" ||
			(l == "arm64" || strings.HasSuffix(l, "-arm")) && about.Arch != "ARM64"
		if other {
			return workflowError(r.job.Plan.File, r.job.Job.Pos, "job '%s' runs on '%s', and this machine is %s on %s",
				r.job.Job.Key, excerpt(label), about.OS, about.Arch)
		}
	}
	return nil
}

// orDefaults fills in what was left out.
func (c Config) orDefaults(j Job) Config {
	repo, _ := j.GitHub["repository"].(string)
	name := path.Base("/" + repo)
	if name == "/" || name == ".." || name == "." {
		name = "workspace"
	}
	d := &c.Dirs
	if d.Home == "" {
		d.Home = "/home/runner"
	}
	for _, f := range []struct {
		field *string
		value string
	}{
		{&d.Workspace, d.Home + "/work/" + name + "/" + name},
		{&d.Temp, d.Home + "/work/_temp"},
		{&d.Tools, "/opt/hostedtoolcache"},
		{&d.Actions, d.Home + "/work/_actions"},
		{&c.Runner.Name, "tgr"}, {&c.Runner.OS, "Linux"}, {&c.Runner.Arch, "X64"}, {&c.Runner.Environment, "self-hosted"},
	} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	if d.Commands == "" {
		d.Commands = d.Temp + "/" + dirCommands
	}
	c.Limits = c.Limits.orDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (l Limits) orDefaults() Limits {
	orInt := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	orInt(&l.LineBytes, 64<<10)
	orInt(&l.Masks, 10_000)
	orInt(&l.MaskBytes, 4<<20)
	orInt(&l.Annotations, 10)
	orInt(&l.Nesting, 10)
	if l.FileBytes <= 0 {
		l.FileBytes = 1 << 20
	}
	if l.ActionFile <= 0 {
		l.ActionFile = 512 << 10
	}
	if l.Grace <= 0 {
		l.Grace = 5 * time.Second
	}
	return l
}

// workflowError is a mistake in a workflow or action file that showed only when it ran.
func workflowError(file string, pos workflow.Pos, format string, args ...any) error {
	place := file
	if pos.Line > 0 {
		place = fmt.Sprintf("%s:%d:%d", file, pos.Line, pos.Column)
	}
	return &fault{blame: tgr.BlameWorkflow, message: place + ": " + fmt.Sprintf(format, args...)}
}

// userError is a fault of what a step did.
func userError(format string, args ...any) error {
	return &fault{blame: tgr.BlameUser, message: fmt.Sprintf(format, args...)}
}

// fault is an error that is not ours. The message is for the job's log.
type fault struct {
	blame   tgr.Blame
	message string
	logged  bool // the log has it already
}

// Error returns the message.
func (f *fault) Error() string { return f.message }

// isOurs reports whether an error is a fault of ours, and not one of the job or the end of its time.
func isOurs(err error) bool {
	return err != nil && blameOf(err) == tgr.BlameOurs && !errors.Is(err, errCancelled) && !errors.Is(err, errStepTimeout)
}

// blameOf says whose fault an error is: ours unless it says otherwise.
func blameOf(err error) tgr.Blame {
	var f *fault
	if errors.As(err, &f) {
		return f.blame
	}
	return tgr.BlameOurs
}

// machineError is a fault of ours: the machine did not do what was asked.
func machineError(doing string, err error) error {
	return &tgr.Error{Op: "job.run", Code: tgr.Unavailable, Message: "the machine failed while " + doing, Err: err}
}

// closeQuietly closes what was only read: the error has nothing to add.
func closeQuietly(c io.Closer) { _ = c.Close() }
