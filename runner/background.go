package runner

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/workflow"
)

// maxBackground is how many steps run in the background at once; the others wait for one of them to end.
//
// https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idstepsbackground
const maxBackground = 10

// A job with steps in the background runs them in goroutines of their own, of which only one is at work: it holds the
// run's lock, which it gives up while it waits for the machine, for a source or for another step. So the state of a job
// has one owner at any time, and the rest of this package knows nothing of concurrency.

// unlocked runs what blocks, and meanwhile lets other steps go on.
func (r *run) unlocked(f func()) {
	r.mu.Unlock()
	defer r.mu.Lock()
	f()
}

// shared is the machine for whoever holds the run's lock: its methods give the lock up while they wait.
type shared struct {
	Machine
	mu *sync.Mutex
}

// unshared is the machine for who does not hold the run's lock.
func (r *run) unshared() Machine {
	m := r.config.Machine.(shared).Machine
	if t, ok := m.(*taped); ok { // what is asked without the lock has no place in the order of things
		return t.Machine
	}
	return m
}

// Exec implements Machine. The output takes the lock for what it is given.
func (s shared) Exec(ctx context.Context, c guest.Cmd, out io.Writer) (guest.Exit, error) {
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.Machine.Exec(ctx, c, out)
}

// Put implements Machine.
func (s shared) Put(ctx context.Context, dir string, tar io.Reader) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.Machine.Put(ctx, dir, tar)
}

// Get implements Machine.
func (s shared) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.Machine.Get(ctx, path)
}

// world is what steps change for those that come after them: the environment, and the directories in front of PATH; the
// last of them comes first. A step in the background has one of its own until somebody waits for it.
type world struct {
	env     vars
	path    []string
	forked  bool
	changes []func(*world) error // of a step in the background, in their order
}

// fork copies the world for a step in the background.
func (w *world) fork() *world {
	f := &world{path: slices.Clone(w.path), forked: true}
	for _, p := range w.env.list {
		f.env.set(p.Name, p.Value)
	}
	return f
}

// change makes a change, and remembers it where it is a fork.
func (w *world) change(do func(*world) error) error {
	if w.forked {
		w.changes = append(w.changes, do)
	}
	return do(w)
}

// background is a step that runs beside those that come after it.
type background struct {
	unit   *unit
	cancel context.CancelCauseFunc
	over   chan struct{} // closed when the fields below are set
	ended  ending
	err    error // a fault of ours
	joined bool  // somebody has waited for it: its outputs and changes are everybody's
}

// crew are the steps of a job that run, or have run, in the background.
type crew struct {
	steps []*background
	slots chan struct{} // one for each that may run
}

// stopped is the cause of a background step's end when another step cancelled it.
type stopped struct{ by string }

// Error says who it was.
func (s stopped) Error() string { return "cancelled by the step '" + s.by + "'" }

// launch starts a step in the background. Its condition and its environment are evaluated now, and what the steps after
// it change is not its business.
func (r *run) launch(u *unit) error {
	run, err := r.admit(u)
	if err == nil && !run {
		r.conclude(u, ended(tgr.Skipped, ""))
		return nil
	}
	r.taped.spoil("steps run in the background")
	top := u.sc
	fork := *top
	fork.of, fork.world, fork.steps = top, top.world.fork(), cloneObject(top.steps)
	u.sc = &fork
	if u.innerIn != nil {
		u.innerIn.parent = &fork
	}
	ctx, cancel := context.WithCancelCause(r.clock.hard)
	b := &background{unit: u, cancel: cancel, over: make(chan struct{})}
	r.crew.steps = append(r.crew.steps, b)
	go func() {
		defer close(b.over)
		defer cancel(nil)
		free := r.slot(ctx, u)
		defer free()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.begin(u.rec)
		if err == nil {
			err = r.attempt(ctx, u)
		}
		b.ended, b.err = r.judge(u, err)
		r.end(u.rec, b.ended)
	}()
	return nil
}

// slot waits until there are few enough steps in the background, or the step is to end before it began.
func (r *run) slot(ctx context.Context, u *unit) (free func()) {
	ctx, done := r.clock.cancellable(ctx, u.survives)
	defer done()
	select {
	case r.crew.slots <- struct{}{}:
		return func() { <-r.crew.slots }
	case <-ctx.Done():
		return func() {}
	}
}

func cloneObject(o *expr.Object) *expr.Object {
	c := expr.NewObject()
	for _, k := range o.Keys() {
		v, _, _ := o.Get(k) // the steps context is not lazy
		c.Set(k, v)
	}
	return c
}

// control runs a step that waits for others, or cancels one. It always runs.
func (r *run) control(u *unit) error {
	r.begin(u.rec)
	u.outputs = vars{}
	var e ending
	var err error
	switch {
	case u.src.Cancel != "":
		e, err = r.cancelStep(u)
	default:
		e, err = r.wait(u, r.waitedFor(u))
	}
	if err != nil {
		return err
	}
	if e, err = r.forgive(u, e); err != nil {
		return err
	}
	r.fold(u, e)
	r.conclude(u, e)
	return nil
}

// waitedFor are the steps that a step waits for: those of its group, those that it names, or all.
func (r *run) waitedFor(u *unit) []*background {
	var list []*background
	for _, b := range r.crew.steps {
		named := slices.ContainsFunc(u.src.Wait, func(id string) bool { return strings.EqualFold(id, b.unit.src.ID) })
		if u.group != nil && slices.Contains(u.group, b.unit) || named || u.src.WaitAll && !b.joined {
			list = append(list, b)
		}
	}
	return list
}

// wait returns when steps have ended and their changes are everybody's, and fails if one of them has.
func (r *run) wait(u *unit, list []*background) (ending, error) {
	if len(list) == 0 {
		r.log(u.rec, "No background steps to wait for.")
		return ending{outcome: tgr.Success}, nil
	}
	r.log(u.rec, "Waiting for background step(s) to complete: "+names(list))
	var e ending
	for _, b := range list {
		if err := r.join(b); err != nil {
			return e, err
		}
		e = e.worse(b)
	}
	r.log(u.rec, "Finished waiting for background step(s).")
	for _, b := range list {
		r.log(u.rec, fmt.Sprintf("  %s: %s", b.unit.rec.Name, b.ended.conclusion))
	}
	return e, nil
}

// worse adds how a step has ended to how those before it have.
func (e ending) worse(b *background) ending {
	switch {
	case b.ended.conclusion == tgr.Failure && e.outcome != tgr.Failure:
		return ending{outcome: tgr.Failure, blame: b.ended.blame, reason: fmt.Sprintf("background step '%s' failed: %s", b.unit.rec.Name, b.ended.reason)}
	case b.ended.conclusion == tgr.Cancelled && e.outcome != tgr.Failure && !b.ended.stopped:
		return ending{outcome: tgr.Cancelled, reason: b.ended.reason}
	case e.outcome == "":
		return ending{outcome: tgr.Success}
	}
	return e
}

// cancelStep ends a step in the background, and waits for it.
func (r *run) cancelStep(u *unit) (ending, error) {
	for _, b := range r.crew.steps {
		if !strings.EqualFold(b.unit.src.ID, u.src.Cancel) {
			continue
		}
		r.log(u.rec, "Cancelling background step: "+b.unit.rec.Name)
		b.cancel(stopped{by: u.rec.Name})
		if err := r.join(b); err != nil {
			return ending{}, err
		}
		r.log(u.rec, fmt.Sprintf("  %s: %s", b.unit.rec.Name, b.ended.conclusion))
		e := ending{}.worse(b) // it may have failed before
		return e, nil
	}
	r.log(u.rec, "There is no background step to cancel.")
	return ending{outcome: tgr.Success}, nil
}

// join waits for a step in the background, and makes what it did everybody's.
func (r *run) join(b *background) error {
	r.unlocked(func() { <-b.over })
	if b.err != nil || b.joined {
		return b.err
	}
	b.joined = true
	fork, top := b.unit.sc, b.unit.sc.of
	for _, change := range fork.world.changes {
		if err := change(top.world); err != nil { // it was fine in the step's own world, and is too much here
			r.warn(b.unit.rec, err.Error())
		}
	}
	fork.world, fork.steps = top.world, top.steps // for its post step
	top.show(b.unit, b.ended)
	return nil
}

// joinAll is the wait for everything that comes before the post steps. Nobody shows it, unless there is something to
// wait for.
func (r *run) joinAll() error {
	u := &unit{run: r, sc: r.top, src: &workflow.Step{ID: "__wait-all", WaitAll: true}}
	if !slices.ContainsFunc(r.crew.steps, func(b *background) bool { return !b.joined }) {
		return nil
	}
	u.rec = r.add(tgr.Step{ID: u.src.ID, Name: "Wait for all"})
	return r.control(u)
}

// endBackground ends what is left when the job ends for a fault of ours.
func (r *run) endBackground() {
	for _, b := range r.crew.steps {
		b.cancel(errCancelled)
		r.unlocked(func() { <-b.over })
	}
}

func names(list []*background) string {
	var all []string
	for _, b := range list {
		all = append(all, b.unit.rec.Name)
	}
	return strings.Join(all, ", ")
}
