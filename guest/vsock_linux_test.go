package guest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenFree listens on some free vsock port, or skips.
func listenFree(t *testing.T) *vsockListener {
	t.Helper()
	for port := uint32(40000); port < 40100; port++ {
		l, err := listenVsock(port)
		switch {
		case err == nil:
			t.Cleanup(func() { l.Close() })
			return l
		case errors.Is(err, unix.EAFNOSUPPORT):
			t.Skip("SKIPPED: this kernel has no vsock: ", err)
		case !errors.Is(err, unix.EADDRINUSE):
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free")
	return nil
}

func TestVsockClose(t *testing.T) {
	l := listenFree(t)
	if _, err := listenVsock(l.port); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
	failed := make(chan error)
	go func() {
		_, err := l.Accept()
		failed <- err
	}()
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	select {
	case err := <-failed:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v, want %v", err, net.ErrClosed)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Accept goes on after Close")
	}
}

func TestVsockStream(t *testing.T) {
	l := listenFree(t)
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &unix.Timeval{Sec: 1})
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: l.port}); err != nil {
		unix.Close(fd)
		t.Skip("SKIPPED: this kernel has no vsock loopback (module vsock_loopback), so no stream is tested: ", err)
	}
	near := os.NewFile(uintptr(fd), "near")
	defer near.Close()
	var far net.Conn
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(far, "hello"); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if got, err := io.ReadAll(near); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}
