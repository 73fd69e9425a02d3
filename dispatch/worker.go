package dispatch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

const (
	maxTries       = 3                // machines given to one job, faults of ours included
	reconcileEvery = 5 * time.Second  // how often leases and unsettled runs are looked at
	pollEvery      = 2 * time.Second  // how often an idle worker asks, should a wake-up be lost
	recordTimeout  = 30 * time.Second // for writing down how a job ended, when everything else is stopping
)

// Dispatcher plans events and runs jobs until it is stopped. Create one with New.
type Dispatcher struct {
	c        Config
	planners chan struct{} // a token for each idle planner that should look again
	workers  chan struct{}
	plans    planCache
	pokes    pokes
}

// New returns a Dispatcher that has not been started.
func New(c Config) *Dispatcher {
	c = c.orDefaults()
	return &Dispatcher{c: c, planners: make(chan struct{}, c.Planners), workers: make(chan struct{}, c.Workers)}
}

// Wake tells idle workers that there may be work. It never blocks, and is safe for concurrent use.
func (d *Dispatcher) Wake() {
	for _, ch := range []chan struct{}{d.planners, d.workers} {
		for range cap(ch) {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}

// Run works until ctx ends, and returns when all its jobs have ended or were put back into the queue.
// At its start it goes on with the jobs of Config.Resume, and takes back the others that a server of the same Owner left
// behind.
func (d *Dispatcher) Run(ctx context.Context) error {
	if err := d.recover(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range d.c.Planners {
		wg.Go(func() { d.loop(ctx, d.planners, []tgr.JobKind{tgr.PlanJob}, d.plan) })
	}
	for i := range max(d.c.Workers, len(d.c.Resume)) {
		wg.Go(func() {
			if i < len(d.c.Resume) {
				d.execute(ctx, d.c.Resume[i].Lease, d.c.Resume[i])
			}
			if i < d.c.Workers {
				d.loop(ctx, d.workers, []tgr.JobKind{tgr.WorkJob}, func(ctx context.Context, l *Lease) { d.execute(ctx, l, nil) })
			}
		})
	}
	wg.Go(func() { d.reconcile(ctx) })
	wg.Wait()
	return nil
}

// recover takes back what an earlier life of this server left running.
func (d *Dispatcher) recover(ctx context.Context) error {
	var kept []tgr.JobID
	for _, r := range d.c.Resume {
		kept = append(kept, r.Lease.Job.ID)
	}
	jobs, err := d.c.Runs.Expire(ctx, d.c.Owner, kept...)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		d.c.Log.Warn("the server was interrupted while this job ran", "run", j.Run, "job", j.ID, "tries", j.Tries, "status", j.Status)
	}
	return d.settleAll(ctx)
}

// loop is one worker: it claims jobs of some kinds and does them, one at a time.
func (d *Dispatcher) loop(ctx context.Context, wake <-chan struct{}, kinds []tgr.JobKind, do func(context.Context, *Lease)) {
	idle := time.NewTimer(pollEvery)
	defer idle.Stop()
	for ctx.Err() == nil {
		lease, err := d.c.Jobs.Claim(ctx, Claim{Owner: d.c.Owner, Lease: d.c.Lease, Kinds: kinds})
		if err == nil {
			do(ctx, lease)
			continue
		}
		if !errors.Is(err, ErrNothing) && ctx.Err() == nil {
			d.c.Log.Error("claim a job", "error", err)
		}
		idle.Reset(pollEvery)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-idle.C:
		}
	}
}

// reconcile is what makes the system converge whatever else was lost: expired leases and unsettled runs.
func (d *Dispatcher) reconcile(ctx context.Context) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		jobs, err := d.c.Runs.Expire(ctx, "")
		if err != nil && ctx.Err() == nil {
			d.c.Log.Error("expire leases", "error", err)
		}
		for _, j := range jobs {
			d.c.Log.Warn("the lease of a job ended without a word from its worker", "run", j.Run, "job", j.ID, "status", j.Status)
		}
		if err := d.settleAll(ctx); err != nil && ctx.Err() == nil {
			d.c.Log.Error("settle", "error", err)
		}
	}
}

func (d *Dispatcher) settleAll(ctx context.Context) error {
	runs, err := d.c.Runs.Unsettled(ctx)
	if err != nil {
		return err
	}
	for _, run := range runs {
		if err := d.Settle(ctx, run); err != nil {
			return err
		}
	}
	return nil
}

// Settle lets the jobs of a run go on as far as their needs allow.
// It is to be called after anything about the run changed; calling it once too often does no harm.
func (d *Dispatcher) Settle(ctx context.Context, id tgr.RunID) error {
	for todo := []tgr.RunID{id}; len(todo) > 0; {
		if err := d.settleOne(ctx, todo[0]); err != nil {
			return err
		}
		nudged := d.c.Runs.Nudged()
		for _, run := range nudged { // a group may have cancelled a job of theirs
			d.pokes.poke(run)
		}
		todo = append(todo[1:], nudged...)
	}
	d.Wake()
	return nil
}

func (d *Dispatcher) settleOne(ctx context.Context, id tgr.RunID) error {
	for changed := true; changed; {
		cancels := false
		// A job that is skipped, cancelled or fails without running may free others: go on until nothing changes.
		changed = false
		err := d.c.Runs.Settle(ctx, id, func(run tgr.Run, jobs []tgr.Job) (Change, error) {
			c, err := d.change(run, jobs)
			cancels = len(c.Cancel) > 0
			changed = len(c.Expand)+len(c.Begin)+len(c.Skip)+len(c.End)+len(c.Queue) > 0 || slices.ContainsFunc(jobs, func(j tgr.Job) bool {
				_, ends := c.Cancel[j.ID]
				return ends && j.Status != tgr.InProgress // that is only marked, and ends when it has wound up
			})
			return c, err
		})
		if err != nil {
			return err
		}
		if cancels {
			d.pokes.poke(id)
		}
	}
	if d.c.Observe.Settled != nil {
		d.c.Observe.Settled(id)
	}
	return nil
}

// change is what next says of a run, or what follows from a run that cannot be decided on.
func (d *Dispatcher) change(run tgr.Run, jobs []tgr.Job) (Change, error) {
	if len(run.Plan) == 0 {
		return unplanned(run, jobs), nil
	}
	p, err := d.plans.get(run)
	if err != nil {
		return Change{}, err
	}
	ctx := context.Background()
	vars, err := d.c.Vault.Variables(ctx, run, "")
	if err != nil {
		return Change{}, err
	}
	run.WorkflowName = p.Name // ours may say more
	// No key that is looked at here may use a secret; what a call passes on is evaluated again when its jobs begin.
	return next(p, run, jobs, &workflow.Scope{
		GitHub: withEvent(d.githubContext(run, ""), payloadOf(run.Event, p)), Vars: vars, Inputs: p.Inputs,
	}, limits{keep: d.c.Keep, labels: d.c.Labels, now: d.c.Now, environment: func(name string) (tgr.Environment, error) {
		return d.c.Vault.Environment(ctx, run, name)
	}}), nil
}

// unplanned is the change of a run whose workflows are not known yet: its plan job can only be cancelled.
func unplanned(run tgr.Run, jobs []tgr.Job) Change {
	c := Change{Cancel: map[tgr.JobID]string{}}
	for _, j := range jobs {
		if !j.Status.Done() && run.CancelReason != "" {
			c.Cancel[j.ID] = run.CancelReason
		}
	}
	return c
}

// settle is Settle for a worker that cannot do anything about an error: the reconciler will try again.
func (d *Dispatcher) settle(ctx context.Context, run tgr.RunID) {
	if err := d.Settle(ctx, run); err != nil {
		d.c.Log.Error("settle", "run", run, "error", err)
	}
}

// keep beats for a lease, also while the server stops, until end is called.
func (d *Dispatcher) keep(ctx context.Context, l *Lease, stop context.CancelCauseFunc) (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.beat(ctx, l, stop)
	}()
	return func() {
		cancel()
		<-done
	}
}

// beat keeps a lease while ctx lasts, and cancels the work when the lease is lost or a cancellation was asked for.
func (d *Dispatcher) beat(ctx context.Context, l *Lease, stop context.CancelCauseFunc) {
	every := min(d.c.Lease/4, 2*time.Second) // how long a cancellation may take to be noticed, if a poke was lost
	poked, end := d.pokes.add(l.Run.ID)
	defer end()
	tick := time.NewTicker(every)
	defer tick.Stop()
	alive := d.c.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-poked:
		}
		reason, err := d.c.Jobs.Beat(ctx, l.Job.ID, l.Token, d.c.Lease)
		switch {
		case err == nil && reason != "":
			stop(&CancelError{Reason: reason}) // the beats go on: winding up takes time
			alive = d.c.Now()
		case err == nil:
			alive = d.c.Now()
		case ctx.Err() != nil:
			return
		case tgr.CodeOf(err) == tgr.Conflict, d.c.Now().Sub(alive) > d.c.Lease:
			stop(ErrLeaseLost)
			return
		default:
			d.c.Log.Warn("beat", "job", l.Job.ID, "error", err)
		}
	}
}

// CancelError is the cause of a job's end when somebody asked for it.
type CancelError struct{ Reason string }

// Error says why.
func (e *CancelError) Error() string { return "cancelled: " + e.Reason }

// Is makes every CancelError the same for errors.Is.
func (e *CancelError) Is(target error) bool { return target == errCancelled }
