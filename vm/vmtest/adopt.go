package vmtest

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// adopted: a machine that its server has left goes on, and the next one goes on with it. What ran then runs, nothing of its output is
// lost or told twice, the machine's end is noticed, and it is freed with all that it had.
func (s *suite) adopted(t *testing.T) {
	if _, ok := s.Provider.(vm.Adopter); !ok {
		t.Skip("machines of this kind end with their server")
	}
	m := s.start(t)
	id := m.(vm.Infoer).Info().ID
	c := s.connect(t, m)
	mark := s.temp(t)
	running, err := c.Start(s.ctx(t), s.sh("echo one; until test -e "+mark+"; do sleep 0.1; done; echo two; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	m = s.succeed(t, m, id)
	c.Close()
	c = s.connect(t, m)
	defer c.Close()
	if exit, err := c.Exec(s.ctx(t), s.sh("mkdir -p "+s.Temp+" && echo go > "+mark), nil); err != nil || !exit.Success() {
		t.Fatalf("exec after the adoption: %+v, %v", exit, err)
	}
	var out bytes.Buffer
	exit, err := c.Attach(s.ctx(t), guest.Attachment{ID: running, Out: &out})
	if err != nil || exit.Code != 3 || out.String() != "one\ntwo\n" {
		t.Errorf("the process that ran ended with %+v, %v and %q", exit, err, out.String())
	}
	c.Close()

	m = s.succeed(t, m, id)
	info := m.(vm.Infoer).Info()
	if info.ID != id || info.Isolation == "" || info.PID <= 0 {
		t.Errorf("info %+v of machine %s", info, id)
	}
	p, err := vm.FindProcess(info.PID)
	if err != nil {
		t.Fatal(err)
	}
	c = s.connect(t, m)
	defer c.Close()
	exit, err = c.Exec(s.ctx(t), s.sh("echo ready; sleep 1000"), writerFunc(func(b []byte) (int, error) {
		p.Kill()
		return len(b), nil
	}))
	s.dead(t, m, exit, err)
}

// succeed has the machine's server leave it, and another one look at the journal and adopt it.
func (s *suite) succeed(t *testing.T, m vm.VM, id string) vm.VM {
	t.Helper()
	if err := m.(vm.Survivor).Leave(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil { // does nothing any more
		t.Fatal(err)
	}
	reaped, err := vm.Journal{Dir: s.Dir}.Reap(s.ctx(t), func(kept string) bool { return kept == id })
	if err != nil || len(reaped) != 0 {
		t.Fatalf("reaped %+v, %v: want nothing", reaped, err)
	}
	m, err = s.Provider.(vm.Adopter).Adopt(s.ctx(t), id)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Orphan starts owner, a server that makes a machine and writes the number of its process to its standard output, kills it with -9
// then, and returns that process, which lives.
func Orphan(t testing.TB, owner *exec.Cmd) vm.Process {
	t.Helper()
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, scanned := fmt.Fscanln(out, &pid)
	owner.Process.Kill()
	owner.Wait()
	if scanned != nil {
		t.Fatal("the owner made no machine: ", scanned)
	}
	orphan, err := vm.FindProcess(pid)
	if err != nil || !orphan.Alive() {
		t.Fatalf("the machine died with its server: %v", err)
	}
	return orphan
}
