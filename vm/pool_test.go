package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const testSize = 256 << 20

// fakeProvider makes machines of nothing, and knows what became of them.
type fakeProvider struct {
	mu     sync.Mutex
	takes  time.Duration // to start a machine
	fails  error         // of Start
	greets error         // of greet
	warm   error         // of Warm
	tries  int           // calls of Start
	warmed int           // calls of Warm
	alive  map[string]*fakeVM
}

func newFakeProvider() *fakeProvider {
	return &fakeProvider{takes: 100 * time.Millisecond, alive: map[string]*fakeVM{}}
}

func (p *fakeProvider) Warm(context.Context, Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.warmed++
	return p.warm
}

func (p *fakeProvider) Start(ctx context.Context, s Spec) (VM, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(p.takes):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries++
	if p.fails != nil {
		return nil, p.fails
	}
	m := &fakeVM{p: p, id: s.ID, died: make(chan struct{})}
	p.alive[s.ID] = m
	return m, nil
}

func (p *fakeProvider) greet(_ context.Context, m VM) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.(*fakeVM).greeted = true
	return p.greets
}

func (p *fakeProvider) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// left is which machines there are.
func (p *fakeProvider) left() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for id := range p.alive {
		ids = append(ids, id)
	}
	return ids
}

type fakeVM struct {
	p       *fakeProvider
	id      string
	greeted bool
	backs   []bool // how it was told to yield
	once    sync.Once
	died    chan struct{}
}

func (m *fakeVM) Dial(context.Context) (net.Conn, error) {
	return nil, errors.New("not a real machine")
}
func (m *fakeVM) Info() Info { return Info{ID: m.id} }

func (m *fakeVM) Yield(back bool) error {
	m.backs = append(m.backs, back)
	return nil
}

func (m *fakeVM) die() { m.once.Do(func() { close(m.died) }) }

func (m *fakeVM) Wait(ctx context.Context) error {
	select {
	case <-m.died:
		return errors.New("it died")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *fakeVM) Close() error {
	m.die()
	m.p.set(func() { delete(m.p.alive, m.id) })
	return nil
}

// inPool runs fn in a bubble of its own time with a pool of at most four machines, which has settled.
func inPool(t *testing.T, fn func(t *testing.T, p *Pool, made *fakeProvider)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		made := newFakeProvider()
		p, err := NewPool(PoolConfig{Provider: made, Size: Spec{Memory: testSize}, Greet: made.greet, Budget: 4*testSize + testSize/2})
		if err != nil {
			t.Fatal(err)
		}
		settle()
		fn(t, p, made)
		if err := errors.Join(p.Close(), p.Close()); err != nil {
			t.Error(err)
		}
		if left := made.left(); len(left) != 0 {
			t.Errorf("%v are left", left)
		}
		if _, err := p.Start(t.Context(), Spec{ID: "late", Memory: testSize}); !errors.Is(err, errPoolClosed) {
			t.Errorf("a closed pool: %v", err)
		}
	})
}

// settle lets the pool do what it has to do now.
func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

// acquire takes a machine, and says how long that took.
func acquire(t *testing.T, p *Pool, id string) (*fakeVM, time.Duration) {
	t.Helper()
	begin := time.Now()
	m, err := p.Start(t.Context(), Spec{ID: id, Memory: testSize})
	if err != nil {
		t.Fatal(err)
	}
	return m.(*fakeVM), time.Since(begin)
}

func wantIdle(t *testing.T, p *Pool, want int) {
	t.Helper()
	if got := p.Idle(); got != want {
		t.Errorf("%d machines wait, want %d", got, want)
	}
}

func TestPoolGivesOutOnce(t *testing.T) {
	inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
		if made.warmed != 1 {
			t.Errorf("warmed %d times", made.warmed)
		}
		wantIdle(t, p, 1)
		a, took := acquire(t, p, "a")
		if took != 0 || !a.greeted || !strings.HasPrefix(a.id, "pool-") || !ValidID(a.id) {
			t.Errorf("%+v after %v: want a machine that waited", a, took)
		}
		b, took := acquire(t, p, "b") // none waits: it is started
		if took != made.takes || b.id != "b" {
			t.Errorf("%+v after %v: want a machine that was started", b, took)
		}
		settle()
		wantIdle(t, p, 2) // as many as were asked for lately
		for id, m := range made.alive {
			if m != a && m != b && !m.greeted {
				t.Errorf("%s waits and was not greeted", id)
			}
		}
		c, took := acquire(t, p, "c")
		if took != 0 || c == a || c == b {
			t.Errorf("%+v after %v: want another that waited", c, took)
		}
		a.Close()
		b.Close()
		c.Close()
		settle()
		wantIdle(t, p, 3)
	})
}

// A machine that waits leaves the processors to the jobs that run, and has its share when it is one of theirs.
func TestPoolYields(t *testing.T) {
	inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
		m, err := p.Start(t.Context(), Spec{ID: "job", Memory: testSize})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if got := m.(*fakeVM).backs; !slices.Equal(got, []bool{true, false}) {
			t.Errorf("told to yield: %v, want true while it waited, and then false", got)
		}
	})
}

func TestPoolFollowsDemand(t *testing.T) {
	inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
		for i := range 8 {
			m, _ := acquire(t, p, fmt.Sprintf("burst-%d", i))
			defer m.Close()
		}
		settle()
		wantIdle(t, p, 4) // the budget
		busy := len(made.left()) - 4
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		wantIdle(t, p, 2)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		wantIdle(t, p, 1)
		if busy != 8 || len(made.left()) != 9 {
			t.Errorf("%d machines were given out, %d are left: only those that wait may be freed", busy, len(made.left()))
		}
	})
}

func TestPoolOtherSize(t *testing.T) {
	inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
		m, err := p.Start(t.Context(), Spec{ID: "large", Memory: 2 * testSize})
		if err != nil || m.(*fakeVM).id != "large" {
			t.Errorf("%+v, %v", m, err)
		}
		wantIdle(t, p, 1)
		m.Close()
	})
}

func TestPoolMachineDies(t *testing.T) {
	inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
		dead := made.left()[0]
		made.alive[dead].die()
		settle()
		wantIdle(t, p, 1)
		if left := made.left(); len(left) != 1 || left[0] == dead {
			t.Errorf("%v are left, %s died", left, dead)
		}
	})
}

// TestPoolFaults: what cannot be made is tried less and less often, is the reason that is given, and comes back.
func TestPoolFaults(t *testing.T) {
	for name, fail := range map[string]func(*fakeProvider, error){
		"start": func(p *fakeProvider, err error) { p.fails = err },
		"greet": func(p *fakeProvider, err error) { p.greets = err },
	} {
		t.Run(name, func(t *testing.T) {
			inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
				broken := errors.New("broken")
				made.set(func() { fail(made, broken); made.tries = 0 })
				m, _ := acquire(t, p, "a")
				m.Close()
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				wantIdle(t, p, 0)
				if made.tries < 5 || made.tries > 15 {
					t.Errorf("tried %d times in five minutes", made.tries)
				}
				made.set(func() { made.fails = errors.New("no room") })
				_, err := p.Start(t.Context(), Spec{ID: "b", Memory: testSize})
				if !errors.Is(err, made.fails) || !errors.Is(err, broken) && name == "greet" {
					t.Errorf("got %v, want both reasons", err)
				}
				made.set(func() { made.fails, made.greets = nil, nil })
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				wantIdle(t, p, 1)
			})
		})
	}
}

func TestPoolWithoutWarmth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := newFakeProvider()
		made.warm = errors.New("no room for a snapshot")
		p, err := NewPool(PoolConfig{Provider: made, Size: Spec{}, Greet: made.greet, Budget: 2, Cost: 1, Min: 2})
		if err != nil {
			t.Fatal(err)
		}
		settle()
		wantIdle(t, p, 2)
		p.Close()
	})
}

func TestPoolDeadline(t *testing.T) {
	inPool(t, func(t *testing.T, p *Pool, made *fakeProvider) {
		m, _ := acquire(t, p, "a")
		defer m.Close()
		made.set(func() { made.takes = time.Hour })
		late := errors.New("too late")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
		defer cancel()
		begin := time.Now()
		for { // the machine that waits by now, if any, and then one that does not come
			m, err := p.Start(ctx, Spec{ID: "b", Memory: testSize})
			if err == nil {
				defer m.Close()
				continue
			}
			if !errors.Is(err, late) || time.Since(begin) != time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
			break
		}
		if _, err := p.Start(ctx, Spec{ID: "c", Memory: testSize}); !errors.Is(err, late) {
			t.Errorf("after the deadline: %v", err)
		}
	})
}

func TestNewPoolRefuses(t *testing.T) {
	made := newFakeProvider()
	for name, c := range map[string]PoolConfig{
		"nothing":     {},
		"no greet":    {Provider: made, Cost: 1},
		"no cost":     {Provider: made, Greet: made.greet},
		"no minimum":  {Provider: made, Greet: made.greet, Cost: 1, Min: -1},
		"less budget": {Provider: made, Greet: made.greet, Cost: 1, Budget: -1},
	} {
		if _, err := NewPool(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPoolTarget(t *testing.T) {
	for _, tt := range []struct {
		recent            float64
		least, most, want int
	}{
		{0, 1, 4, 1}, {0, 0, 4, 0}, {0.4, 0, 4, 0}, {0.6, 0, 4, 1}, {2.4, 1, 4, 2}, {2.6, 1, 4, 3},
		{1e30, 1, 4, 4}, {5, 1, 0, 0}, {0, 3, 2, 2}, {1, 1, 1, 1},
	} {
		if got := poolTarget(tt.recent, tt.least, tt.most); got != tt.want {
			t.Errorf("poolTarget(%v, %d, %d) = %d, want %d", tt.recent, tt.least, tt.most, got, tt.want)
		}
	}
}

func TestDemand(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := demand{over: time.Minute}
	if d.recent(now) != 0 {
		t.Error("demand without an arrival")
	}
	for range 10 {
		d.arrive(now)
	}
	for after, want := range map[time.Duration]float64{0: 10, time.Minute: 3.68, 2 * time.Minute: 1.35, -time.Hour: 10} {
		if got := d.recent(now.Add(after)); got < want-0.01 || got > want+0.01 {
			t.Errorf("after %v: %v, want %v", after, got, want)
		}
	}
	steady := demand{over: time.Minute}
	for range 1000 { // four a minute
		now = now.Add(15 * time.Second)
		steady.arrive(now)
	}
	if got := steady.recent(now.Add(7 * time.Second)); got < 3.5 || got > 4.5 {
		t.Errorf("four arrivals a minute make %v", got)
	}
}
