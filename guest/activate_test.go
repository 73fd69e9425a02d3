package guest

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asActivated, in the environment, makes this program one that is started for a socket.
const asActivated = "TGR_TEST_ACTIVATED"

// TestActivated is no test: it answers one connection to the socket that it was started with, and ends.
func TestActivated(t *testing.T) {
	if os.Getenv(asActivated) == "" {
		t.Skip("it is run by TestActivator")
	}
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "process %d", os.Getpid())
	c.Close()
	os.Exit(0)
}

// TestActivator: nothing runs until somebody connects; who does is answered, also when the one before has ended. It ends with
// its socket.
func TestActivator(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	fd, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerConfig{})
	defer s.Close()
	a := &activator{socket: os.NewFile(uintptr(fd), path), cmd: command{
		path: self, args: []string{self, "-test.run=^TestActivated$"},
		attr: syscall.ProcAttr{Dir: "/", Env: []string{asActivated + "=1"}, Sys: &syscall.SysProcAttr{Setsid: true}},
	}}
	over := make(chan error, 1)
	go func() { over <- a.run(s) }()
	var said [2]string
	for i := range said {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if said[i] = string(b); err != nil || len(b) == 0 {
			t.Errorf("connection %d: %q, %v", i, b, err)
		}
		c.Close()
	}
	if said[0] == said[1] {
		t.Errorf("both were answered by %s", said[0])
	}
	a.socket.Close()
	if err := <-over; err == nil {
		t.Error("it ended without a reason")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&0o777 != 0o666 {
		t.Errorf("the socket's mode is %o, %v", st.Mode, err)
	}
}
