package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Warmer is a Provider that can prepare for machines of one size, so that Start takes milliseconds.
type Warmer interface {
	// Warm prepares for machines of s's size, if it has not been done before; s's ID means nothing. It may take as
	// long as a few boots. Without it, and after it failed, Start boots machines.
	Warm(ctx context.Context, s Spec) error
}

// PoolConfig says what machines wait, and how many. Provider, Greet and Budget are required.
type PoolConfig struct {
	Provider Provider
	Size     Spec // of the machines that wait; the ID means nothing
	// Greet returns when the agent of a new machine has answered; what else it does, such as to run what jobs run
	// first, makes that faster. The stream to it may stay open. Whoever is given the machine makes it a machine of
	// its own: clock, names, and entropy unless Greet did. A machine that Greet fails on is closed.
	Greet func(ctx context.Context, m VM) error
	// Budget is how many bytes of the host's memory waiting machines may take, and Cost what one takes; 0: the
	// memory of Size, which the clone of a snapshot takes only as it writes to it.
	Budget int64
	Cost   int64
	Min    int           // machines that wait when there is no demand; default 1, as far as Budget goes
	Memory time.Duration // time constant of the mean of arrivals; default 2 minutes
	Within time.Duration // bound of making one machine; default 5 minutes
	Log    *slog.Logger  // nil: nothing is logged
}

// Pool is a Provider that has machines of one size wait. It gives each of them out once, and starts a machine of
// the provider underneath where none waits, or another size is asked for. It is safe for concurrent use.
type Pool struct {
	cfg  PoolConfig
	max  int
	stop context.CancelCauseFunc
	work sync.WaitGroup
	kick chan struct{} // has room for one: something has changed

	mu      sync.Mutex
	idle    []*waiting // the one that waits longest is first
	demand  demand
	fault   error // of the last machine that could not be made
	closed  bool
	leaving error // what Close could not free
}

// waiting is a machine of the pool that nobody has been given.
type waiting struct {
	VM
	stop context.CancelFunc // of its watch
}

var (
	_ Provider = (*Pool)(nil)
	_ Adopter  = (*Pool)(nil)
)

// errPoolClosed is the cause of what Close ends.
var errPoolClosed = errors.New("the pool was closed")

const (
	poolBackoff    = time.Second // after a machine could not be made, doubled each time
	poolMaxBackoff = time.Minute
	poolTick       = 10 * time.Second // how often demand is looked at without a cause
)

// NewPool returns a pool that makes its machines in the background. Close ends it.
func NewPool(cfg PoolConfig) (*Pool, error) {
	if cfg.Provider == nil || cfg.Greet == nil {
		return nil, errors.New("pool: Provider and Greet are required")
	}
	if cfg.Cost == 0 {
		cfg.Cost = cfg.Size.Memory
	}
	if cfg.Cost <= 0 || cfg.Budget < 0 || cfg.Min < 0 {
		return nil, fmt.Errorf("pool: cost %d, budget %d, minimum %d: out of range", cfg.Cost, cfg.Budget, cfg.Min)
	}
	if cfg.Min == 0 {
		cfg.Min = 1
	}
	if cfg.Memory == 0 {
		cfg.Memory = 2 * time.Minute
	}
	if cfg.Within == 0 {
		cfg.Within = 5 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	p := &Pool{cfg: cfg, max: int(cfg.Budget / cfg.Cost), stop: stop, kick: make(chan struct{}, 1), demand: demand{over: cfg.Memory}}
	p.work.Go(func() { p.keep(ctx) })
	return p, nil
}

// Start gives out a machine that waits, or starts one with s's ID. A machine that waited has an ID of its own,
// which Infoer tells; its agent has answered. It obeys Provider: ctx bounds it, and the error says what the pool
// knows of why no machine waited.
func (p *Pool) Start(ctx context.Context, s Spec) (VM, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	size := s
	size.ID = p.cfg.Size.ID
	if size != p.cfg.Size {
		return p.cfg.Provider.Start(ctx, s)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, &InfraError{Op: "pool", Err: errPoolClosed}
	}
	p.demand.arrive(time.Now())
	p.mu.Unlock()
	defer p.changed()
	if w := p.take(); w != nil {
		p.yield(w.VM, false)
		return w.VM, nil
	}
	return p.startNow(ctx, s)
}

// Adopt is the provider's, if it can do that: machines that were given out belong to no pool. It obeys Adopter.
func (p *Pool) Adopt(ctx context.Context, id string) (VM, error) {
	return Adopt(ctx, p.cfg.Provider, id)
}

// startNow starts a machine where none waits.
func (p *Pool) startNow(ctx context.Context, s Spec) (VM, error) {
	m, err := p.cfg.Provider.Start(ctx, s)
	if err == nil {
		return m, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault != nil {
		return nil, fmt.Errorf("%w; none waited, because the last one could not be made: %w", err, p.fault)
	}
	return nil, err
}

// Idle is how many machines wait.
func (p *Pool) Idle() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

// Close frees the machines that wait, and returns when nothing is left of them. Those that were given out belong
// to those who have them. It is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop(errPoolClosed)
	p.work.Wait()
	for w := p.take(); w != nil; w = p.take() {
		err := w.VM.Close()
		p.mu.Lock()
		p.leaving = errors.Join(p.leaving, err)
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leaving
}

// changed has keep look at the pool.
func (p *Pool) changed() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// take removes the machine that waits longest, or returns nil.
func (p *Pool) take() *waiting {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	w := p.idle[0]
	p.idle = p.idle[1:]
	w.stop()
	return w
}

// keep makes and frees machines, one at a time, until ctx ends.
func (p *Pool) keep(ctx context.Context) {
	if w, ok := p.cfg.Provider.(Warmer); ok {
		if err := w.Warm(ctx, p.cfg.Size); err != nil && ctx.Err() == nil {
			p.cfg.Log.Warn("machines are booted, because they cannot be prepared", "error", err)
		}
	}
	var wait time.Duration // after a fault
	for ctx.Err() == nil {
		switch n := p.Idle() - p.target(); {
		case n > 0:
			if w := p.take(); w != nil {
				p.discard(w.VM, "there are more than are asked for", nil)
			}
			continue
		case n < 0:
			err := p.add(ctx)
			p.mu.Lock()
			p.fault = err
			p.mu.Unlock()
			if err == nil {
				wait = 0
				continue
			}
			if ctx.Err() != nil {
				return
			}
			wait = min(max(2*wait, poolBackoff), poolMaxBackoff)
			p.cfg.Log.Warn("no machine for the pool", "error", err, "next", wait)
			sleep(ctx, wait)
		default:
			p.pause(ctx)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// pause waits until there may be something to do.
func (p *Pool) pause(ctx context.Context) {
	t := time.NewTimer(poolTick)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-p.kick:
	case <-t.C:
	}
}

// add makes a machine and has it wait.
func (p *Pool) add(life context.Context) error {
	ctx, cancel := context.WithTimeoutCause(life, p.cfg.Within, fmt.Errorf("it was not ready within %v", p.cfg.Within))
	defer cancel()
	s := p.cfg.Size
	s.ID = "pool-" + strings.ToLower(rand.Text()[:16])
	m, err := p.cfg.Provider.Start(ctx, s)
	if err != nil {
		return err
	}
	p.yield(m, true) // to the jobs that run
	err = p.cfg.Greet(ctx, m)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		p.discard(m, "it was not ready", err)
		return err
	}
	watch, stop := context.WithCancel(life)
	w := &waiting{m, stop}
	p.mu.Lock()
	p.idle = append(p.idle, w)
	n := len(p.idle)
	p.mu.Unlock()
	p.cfg.Log.Info("a machine waits", "vm", s.ID, "waiting", n)
	p.work.Go(func() { p.watch(watch, w) })
	return nil
}

// yield has a machine stand back while it waits, if it can.
func (p *Pool) yield(m VM, back bool) {
	if y, ok := m.(Yielder); ok {
		if err := y.Yield(back); err != nil {
			p.cfg.Log.Warn("a machine keeps its share of the processors", "back", back, "error", err)
		}
	}
}

// watch takes a machine out of the pool that dies while it waits.
func (p *Pool) watch(ctx context.Context, w *waiting) {
	err := w.VM.Wait(ctx)
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	found := false
	for i, other := range p.idle {
		if other == w {
			p.idle = append(p.idle[:i:i], p.idle[i+1:]...)
			found = true
			break
		}
	}
	p.mu.Unlock()
	if found {
		w.stop()
		p.discard(w.VM, "it died while it waited", err)
		p.changed()
	}
}

// discard frees a machine that nobody is given.
func (p *Pool) discard(m VM, why string, err error) {
	id := ""
	if i, ok := m.(Infoer); ok {
		id = i.Info().ID
	}
	p.cfg.Log.Info("a machine of the pool is freed", "vm", id, "reason", why, "error", err)
	if err := m.Close(); err != nil {
		p.cfg.Log.Error("free a machine of the pool", "vm", id, "error", err)
		p.mu.Lock()
		p.leaving = errors.Join(p.leaving, err)
		p.mu.Unlock()
	}
}

// target is how many machines should wait now.
func (p *Pool) target() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return poolTarget(p.demand.recent(time.Now()), p.cfg.Min, p.max)
}
