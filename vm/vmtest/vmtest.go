// Package vmtest is the conformance suite that every provider of machines passes: what a job needs of a machine
// and its agent, whatever the machine is made of.
package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// Factory says what is tested and how much of it.
type Factory struct {
	Provider vm.Provider
	Spec     vm.Spec // of every machine; its ID is made up
	Dir      string  // the provider's journal, which must be empty in the end
	// Close, if not nil, ends what the provider has in its journal besides machines.
	Close func() error
	Temp  string // a folder in the machine for the suite's files; it is made where it is missing
	// Crash is a script for the machine's shell that makes the agent die: "kill -9 $PPID".
	Crash string
	// Memory says that the agent knows how much memory is used: it has a machine or a control group to itself.
	Memory   bool
	Cycles   int           // machines made and destroyed in a row; 0: 3
	OutputMB int           // size of the largest output; 0: 1024. Tests with -short take 16
	Within   time.Duration // bound of each single operation; 0: one minute
}

// trickleSeconds is how long an output of 64 KiB/s is watched.
const trickleSeconds = 2

// Run runs the suite. Most of it shares one machine; what kills a machine has one of its own.
func Run(t *testing.T, f Factory) {
	if f.Cycles == 0 {
		f.Cycles = 3
	}
	if f.OutputMB == 0 {
		f.OutputMB = 1024
	}
	if testing.Short() {
		f.OutputMB = min(f.OutputMB, 16)
	}
	if f.Within == 0 {
		f.Within = time.Minute
	}
	s := &suite{Factory: f}
	t.Run("shared", func(t *testing.T) {
		m := s.start(t)
		defer s.closeAndCheck(t, m)
		s.shared(t, m)
	})
	t.Run("agent death", s.agentDeath)
	t.Run("machine death", s.machineDeath)
	t.Run("close", s.closing)
	t.Run("cancelled start", s.cancelledStart)
	t.Run("cycles", s.cycles)
	t.Run("adopted", s.adopted)
	if s.Close != nil {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	s.nothingLeft(t)
}

func (s *suite) shared(t *testing.T, m vm.VM) {
	c := s.connect(t, m)
	defer c.Close()
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *guest.Client)
	}{
		{"exit", s.exit},
		{"streams", s.streams},
		{"environment", s.environment},
		{"stdin", s.stdin},
		{"trickle", s.trickle},
		{"flood", s.flood},
		{"cancel", s.cancel},
		{"background", s.background},
		{"signal", s.signal},
		{"put and get", s.putGet},
		{"hostile paths", s.hostilePaths},
		{"get", s.getOddities},
		{"concurrent", s.concurrent},
		{"port", s.port},
		{"usage", s.usage},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, c) })
	}
	c.Close()
	t.Run("re-attach", func(t *testing.T) { s.reattach(t, m) })
	t.Run("one stream at a time", func(t *testing.T) { s.oneStream(t, m) })
}

type suite struct {
	Factory
	made  atomic.Int64
	mu    sync.Mutex
	hosts []vm.Process // that were machines
}

// ctx bounds one operation.
func (s *suite) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.Within)
	t.Cleanup(cancel)
	return ctx
}

func (s *suite) start(t *testing.T) vm.VM {
	t.Helper()
	spec := s.Spec
	spec.ID = fmt.Sprintf("vmtest-%d-%d", os.Getpid(), s.made.Add(1))
	m, err := s.Provider.Start(s.ctx(t), spec)
	if err != nil {
		var boot *vm.BootError
		if errors.As(err, &boot) {
			t.Logf("console:\n%s", boot.Console)
		}
		t.Fatal(err)
	}
	if i, ok := m.(vm.Infoer); ok {
		info := i.Info()
		if s.made.Load() == 1 {
			t.Logf("%s, %v to a machine that may be dialled", info.Isolation, info.Boot)
		}
		if info.ID != spec.ID || info.Isolation == "" || info.PID <= 0 {
			t.Errorf("info %+v of machine %s", info, spec.ID)
		}
		if p, err := vm.FindProcess(info.PID); err == nil {
			s.mu.Lock()
			s.hosts = append(s.hosts, p)
			s.mu.Unlock()
		}
	}
	return m
}

func (s *suite) connect(t *testing.T, m vm.VM) *guest.Client {
	t.Helper()
	conn, err := m.Dial(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(s.ctx(t), conn)
	if err != nil {
		if i, ok := m.(vm.Infoer); ok {
			t.Logf("console:\n%s", i.Info().Console)
		}
		t.Fatal(err)
	}
	return c
}

// closeAndCheck closes m and waits for it.
func (s *suite) closeAndCheck(t *testing.T, m vm.VM) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := m.Wait(s.ctx(t)); err != nil {
		t.Errorf("wait after close: %v", err)
	}
}

// nothingLeft looks for what machines left on the host.
func (s *suite) nothingLeft(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.hosts {
		if p.Alive() {
			t.Errorf("process %d of a machine is left", p.PID)
		}
	}
	if s.Dir == "" {
		return
	}
	left, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, d := range left {
		t.Errorf("%s is left in the journal", d.Name())
	}
}

// agentDeath: who runs something learns of it in bounded time, and the machine can be freed.
func (s *suite) agentDeath(t *testing.T) {
	if s.Crash == "" {
		t.Skip("the factory has no way to kill the agent")
	}
	m := s.start(t)
	c := s.connect(t, m)
	defer c.Close()
	// What it leaves behind must go with the machine.
	exit, err := c.Exec(s.ctx(t), s.sh("sleep 1000 >/dev/null 2>&1 &\n"+s.Crash+"\nsleep 1000"), nil)
	s.dead(t, m, exit, err)
}

// machineDeath: the same for a machine whose process on the host is killed.
func (s *suite) machineDeath(t *testing.T) {
	m := s.start(t)
	i, ok := m.(vm.Infoer)
	if !ok {
		m.Close()
		t.Skip("the machine does not say which process it is")
	}
	p, err := vm.FindProcess(i.Info().PID)
	if err != nil {
		t.Fatal(err)
	}
	c := s.connect(t, m)
	defer c.Close()
	var once sync.Once
	exit, err := c.Exec(s.ctx(t), s.sh("echo ready; sleep 1000"), writerFunc(func(b []byte) (int, error) {
		once.Do(func() { p.Kill() })
		return len(b), nil
	}))
	s.dead(t, m, exit, err)
}

// dead checks what is known of a machine that died under an Exec.
func (s *suite) dead(t *testing.T, m vm.VM, exit guest.Exit, err error) {
	t.Helper()
	if !errors.Is(err, guest.ErrLost) {
		t.Errorf("exec: %+v, %v; want ErrLost", exit, err)
	}
	err = m.Wait(s.ctx(t))
	var boot *vm.BootError
	var infra *vm.InfraError
	if !errors.As(err, &boot) && !errors.As(err, &infra) {
		t.Errorf("wait: %v; want a *vm.BootError or *vm.InfraError", err)
	}
	if conn, err := m.Dial(s.ctx(t)); err == nil {
		if c, err := guest.Connect(s.ctx(t), conn); err == nil {
			t.Error("a dead machine answers")
			c.Close()
		}
	}
	if err := m.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// closing: Close may be called by all and again.
func (s *suite) closing(t *testing.T) {
	m := s.start(t)
	c := s.connect(t, m)
	defer c.Close()
	var closers sync.WaitGroup
	for range 4 {
		closers.Go(func() {
			if err := m.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	closers.Wait()
	s.closeAndCheck(t, m)
	if _, err := c.Exec(s.ctx(t), s.sh("true"), nil); !errors.Is(err, guest.ErrLost) {
		t.Errorf("exec in a closed machine: %v; want ErrLost", err)
	}
	if conn, err := m.Dial(s.ctx(t)); err == nil {
		conn.Close()
		t.Error("a closed machine can be dialled")
	}
}

// cancelledStart: nothing is left of a machine that nobody waited for.
func (s *suite) cancelledStart(t *testing.T) {
	why := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	spec := s.Spec
	spec.ID = fmt.Sprintf("vmtest-%d-cancelled", os.Getpid())
	m, err := s.Provider.Start(ctx, spec)
	if err == nil {
		m.Close()
		t.Fatal("a start that was cancelled before it began succeeded")
	}
	if !errors.Is(err, why) {
		t.Errorf("got %v, want the cause", err)
	}
}

// cycles: machines come and go, and leave nothing.
func (s *suite) cycles(t *testing.T) {
	for range s.Cycles {
		m := s.start(t)
		c := s.connect(t, m)
		exit, err := c.Exec(s.ctx(t), s.sh("sleep 1000 >/dev/null 2>&1 & exit 4"), nil)
		if err != nil || exit.Code != 4 {
			t.Errorf("exec: %+v, %v; want status 4", exit, err)
		}
		c.Close()
		s.closeAndCheck(t, m)
		if t.Failed() {
			return
		}
	}
}

// sh is a command for the shell with a small environment.
func (s *suite) sh(script string) guest.Cmd {
	return guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}}
}

// temp is the path of a file in the machine that no other test uses.
func (s *suite) temp(t *testing.T) string {
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '-'
		}
		return r
	}, t.Name())
	return path.Join(s.Temp, fmt.Sprintf("%s-%d", name, s.made.Load()))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
