package vmapi

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// Times of a machine's end.
const (
	freeTries = 5               // attempts to free a machine
	freeAgain = time.Second     // before the second; each further one waits twice as long
	keepEnded = time.Hour       // that a machine which has ended can still be asked about
	lastWords = 2000            // bytes of the console in the reason of a machine that did not boot
	dieWithin = 2 * time.Second // that a machine whose stream broke has to be known as dead
)

// machine is one machine of the server's. One goroutine, live, makes and frees it.
type machine struct {
	s       *Server
	id      string
	asked   CreateRequest
	user    string
	back    Backend
	spec    vm.Spec
	session *vm.Session
	ctx     context.Context // ends when the machine is to go; its cause is the reason
	stop    context.CancelCauseFunc
	freed   chan struct{} // closed when the machine has ended
	dialing sync.Mutex    // held while the agent is dialled

	mu        sync.Mutex
	state     State
	reason    string
	changed   chan struct{} // closed, and replaced, when the state changes
	timings   []Timing
	leased    time.Time
	returned  chan struct{} // closed, and replaced, when the lease is given back
	vm        vm.VM         // nil: not made yet
	agent     *guest.Client
	place     Place
	isolation string
	kernel    string
	execs     map[string]*execution
	history   history
	at        string // the snapshot that was last taken, or rolled back to

	descriptions map[string]string // of snapshots, by their ids
}

// stopped is the cause of a machine's end that somebody, or a limit, wanted.
type stopped struct{ reason string }

func (e *stopped) Error() string { return e.reason }

// newMachine begins to make a machine. The caller has opened the session.
func (s *Server) newMachine(req CreateRequest, back Backend, user string, session *vm.Session) *machine {
	id := make([]byte, 8)
	rand.Read(id)
	now := time.Now()
	m := &machine{s: s, id: fmt.Sprintf("vm-%x", id), asked: req, user: user, session: session, back: back, spec: back.Size,
		state: Creating, freed: make(chan struct{}), changed: make(chan struct{}), returned: make(chan struct{}), execs: map[string]*execution{},
		timings: []Timing{{State: Creating, Began: now}}}
	m.spec.ID = m.id
	if req.VCPUs > 0 {
		m.spec.VCPUs = req.VCPUs
	}
	if req.MemoryMB > 0 {
		m.spec.Memory = int64(req.MemoryMB) << 20
	}
	m.ctx, m.stop = context.WithCancelCause(context.Background())
	return m
}

// live is the machine's life.
func (m *machine) live() {
	err := m.boot()
	if err == nil {
		if err = m.vm.Wait(m.ctx); err == nil {
			err = errors.New("it powered off")
		}
	}
	m.free(err)
}

// boot makes the machine, and a machine of its own of it.
func (m *machine) boot() error {
	ctx, cancel := context.WithTimeoutCause(m.ctx, m.s.cfg.BootWithin, fmt.Errorf("it was not ready within %v", m.s.cfg.BootWithin))
	defer cancel()
	made, err := m.back.Provider.Start(ctx, m.spec)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.vm = made
	m.mu.Unlock()
	m.set(evMade, "")
	client, err := guest.Dial(ctx, made.Dial)
	if err != nil {
		return m.diagnose(err)
	}
	if !m.back.Shared {
		entropy := make([]byte, 64)
		rand.Read(entropy)
		if err := client.Prepare(ctx, guest.Identity{Hostname: m.id, Time: time.Now(), Entropy: entropy}); err != nil {
			client.Close()
			return m.diagnose(fmt.Errorf("prepare the machine: %w", err))
		}
	}
	m.mu.Lock()
	m.agent, m.kernel, m.isolation = client, client.Hello().Kernel, "unknown"
	if i, ok := made.(vm.Infoer); ok {
		m.isolation = i.Info().Isolation
	}
	if m.back.Place != nil {
		m.place = m.back.Place(made)
	}
	m.mu.Unlock()
	if err := m.session.Apply(vm.SessionReady); err != nil {
		return err
	}
	m.set(evAnswer, "")
	if m.asked.LeaseSeconds > 0 {
		m.lease(time.Duration(m.asked.LeaseSeconds) * time.Second)
	}
	return nil
}

// diagnose prefers what the machine died of to what was noticed because of it.
func (m *machine) diagnose(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if died := m.vm.Wait(ctx); died != nil && !errors.Is(died, context.DeadlineExceeded) {
		return died
	}
	return err
}

// free ends the machine: err is why, unless its context says so.
func (m *machine) free(err error) {
	defer close(m.freed)
	defer m.session.Free()
	died := m.ctx.Err() == nil
	if died {
		m.s.log.Error("a machine died", "vm", m.id, "error", err)
		m.session.Apply(vm.SessionFail) // a session that has failed before, or completed, stays so
	} else {
		err = context.Cause(m.ctx)
		m.set(evStop, err.Error())
	}
	m.session.Apply(vm.SessionClose)
	m.stop(err) // whatever still runs in it ends
	m.mu.Lock()
	made, client := m.vm, m.agent
	m.mu.Unlock()
	if made != nil {
		m.close(made)
	}
	if client != nil {
		client.Close() // after the machine: an agent that does not answer must not delay its end
	}
	if died {
		m.set(evDie, reasonOf(err))
		return
	}
	m.set(evFreed, err.Error())
}

// close frees what the host has of the machine.
func (m *machine) close(made vm.VM) {
	wait := freeAgain
	for try := 1; ; try++ {
		err := made.Close()
		if err == nil {
			return
		}
		m.s.log.Error("free a machine", "vm", m.id, "try", try, "error", err)
		if try == freeTries {
			return // the journal keeps it, and the next start reaps it
		}
		select {
		case <-time.After(wait):
			wait *= 2
		case <-m.s.closing:
			return
		}
	}
}

// reasonOf says why a machine died, with its last words.
func reasonOf(err error) string {
	var boot *vm.BootError
	if errors.As(err, &boot) && boot.Console != "" {
		return fmt.Sprintf("%v; its console ended with:\n%s", err, boot.Console[max(0, len(boot.Console)-lastWords):])
	}
	return err.Error()
}

// set makes an event happen; one that cannot is ignored, and reported so.
func (m *machine) set(e event, reason string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	to, ok := m.state.after(e)
	if !ok {
		return false
	}
	now := time.Now()
	last := &m.timings[len(m.timings)-1]
	last.DurationMS = ms(now.Sub(last.Began))
	if to != m.state {
		const most = 64 // phases: pausing and leasing may go on for ever
		if len(m.timings) == most {
			m.timings = append(m.timings[:3], m.timings[4:]...) // how it came up stays
		}
		m.timings = append(m.timings, Timing{State: to, Began: now})
	}
	if reason != "" {
		m.reason = reason
	}
	m.state = to
	close(m.changed)
	m.changed = make(chan struct{})
	m.s.log.Info("machine", "vm", m.id, "state", to, "reason", reason)
	return true
}

// lease leases the machine, or with 0 returns it, and says until when it is there.
func (m *machine) lease(d time.Duration) error {
	e := evLease
	if d == 0 {
		e = evReturn
	}
	m.mu.Lock()
	state := m.state
	m.mu.Unlock()
	if state == Ready && d == 0 {
		return nil // it was not leased
	}
	if !m.set(e, "") {
		return m.not("leased")
	}
	until := m.session.Lease(d)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leased = time.Time{}
	if d > 0 {
		m.leased = until
		return nil
	}
	close(m.returned)
	m.returned = make(chan struct{})
	return nil
}

// not says that the machine's state does not allow something.
func (m *machine) not(what string) *Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := errorf(http.StatusConflict, "conflict", "%s is %s, and cannot be %s now", m.id, m.state, what)
	if m.reason != "" {
		e.Message += ": " + m.reason
	}
	if m.state == Creating || m.state == Booting {
		e.RetryAfter = time.Second
	}
	return e
}

// client returns the stream to the agent, and opens it again where it was lost.
func (m *machine) client(ctx context.Context) (*guest.Client, error) {
	m.dialing.Lock()
	defer m.dialing.Unlock()
	m.mu.Lock()
	c, state, made := m.agent, m.state, m.vm
	m.mu.Unlock()
	if !state.usable() {
		return nil, m.not("used")
	}
	select {
	default:
		return c, nil
	case <-c.Done():
	}
	c.Close()
	fresh, err := guest.Dial(ctx, made.Dial)
	if err != nil {
		return nil, fmt.Errorf("dial the agent again: %w", m.dead(err))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.agent = fresh
	return fresh, nil
}

// dead prefers to a lost stream what the machine died of, if it did.
func (m *machine) dead(err error) error {
	select {
	case <-m.ctx.Done():
	case <-time.After(dieWithin):
		return err
	}
	return fmt.Errorf("%w: %w", guest.ErrLost, context.Cause(m.ctx))
}

// wait waits until the machine may be used, or has ended.
func (m *machine) wait(ctx context.Context) {
	for {
		m.mu.Lock()
		state, changed := m.state, m.changed
		m.mu.Unlock()
		if state != Creating && state != Booting {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// view is the machine as the API shows it.
func (m *machine) view() VM {
	info := m.session.Info()
	m.mu.Lock()
	defer m.mu.Unlock()
	v := VM{ID: m.id, Name: m.asked.Name, Status: m.state.status(), State: m.state, Reason: m.reason, VMType: m.asked.VMType,
		UserID: m.user, CreatedAt: m.timings[0].Began, UpdatedAt: m.timings[len(m.timings)-1].Began,
		Isolation: m.isolation, Kernel: m.kernel, Session: &info}
	v.Timings = append(v.Timings, m.timings...)
	if last := &v.Timings[len(v.Timings)-1]; !m.state.ended() {
		last.DurationMS = ms(time.Since(last.Began))
	}
	if v.Name == "" {
		v.Name = m.id
	}
	if m.state.usable() {
		place := m.place
		v.Place = &place
	}
	if m.state == Leased {
		until := m.leased
		v.LeasedTo = &until
	}
	config, err := json.Marshal(map[string]any{"vm_type": m.asked.VMType, "vcpus": max(1, m.spec.VCPUs), "memory_mb": m.spec.Memory >> 20})
	if err == nil {
		v.Config = string(config)
	}
	return v
}

// duration is what ms made a number of; one that no clock can show becomes 0.
func duration(ms float64) time.Duration {
	if !(math.Abs(ms) < math.MaxInt64/float64(time.Millisecond)) {
		return 0
	}
	return time.Duration(ms * float64(time.Millisecond))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
