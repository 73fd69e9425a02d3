package guest

import (
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// vsockListener listens on a vsock port, which the net package does not know. See vsock(7).
type vsockListener struct {
	file *os.File
	port uint32
	once sync.Once
}

func listenVsock(port uint32) (*vsockListener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // before NewFile, which then waits by polling
		unix.Close(fd)
		return nil, err
	}
	return &vsockListener{file: os.NewFile(uintptr(fd), fmt.Sprintf("vsock:%d", port)), port: port}, nil
}

// Accept waits for a stream of the host's.
func (l *vsockListener) Accept() (net.Conn, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	err = raw.Read(func(listener uintptr) bool {
		fd, _, failed = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return failed != unix.EAGAIN
	})
	if err != nil { // only a file that was closed has one
		failed = net.ErrClosed
	}
	if err = failed; err != nil {
		return nil, fmt.Errorf("accept on vsock port %d: %w", l.port, err)
	}
	return newPortConn(os.NewFile(uintptr(fd), l.file.Name()))
}

// Close ends Accept. It may be called again.
func (l *vsockListener) Close() (err error) {
	l.once.Do(func() { err = l.file.Close() })
	return err
}

// Addr names the port.
func (l *vsockListener) Addr() net.Addr { return portAddr(l.file.Name()) }
