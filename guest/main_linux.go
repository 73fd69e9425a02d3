package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Main is the agent as a program: its arguments without its name, the version of the build, and where to
// complain. It returns the exit status. As PID 1 it boots the machine and never returns; in a container, which has
// the variable "container" in its environment, it does not.
//
//	-fd N       serve on an inherited socket: a stream, or one that listens for streams
//	-port PATH  serve on a virtio-serial port of the machine that this process has to itself
//	-orphans D  how long processes outlive a lost stream
//
// A value of "tgr" says that the container has a control group and its namespace to itself.
//
// When it ends it kills everything that it started, and all that descends from that, which a subreaper can see.
func Main(args []string, version string, stderr io.Writer) int {
	flags := flag.NewFlagSet("tgr-guest", flag.ContinueOnError)
	flags.SetOutput(stderr)
	fd := flags.Int("fd", -1, "inherited socket to serve on")
	port := flags.String("port", "", "virtio-serial port to serve on")
	child := flags.Bool("child", false, "be the agent itself, below the process that outlives it")
	orphans := flags.Duration("orphans", 0, "how long processes outlive a lost stream (default 10m)")
	first := os.Getpid() == 1
	machine := first && os.Getenv("container") == "" // of which we are PID 1, rather than of a container
	if machine {
		args = nil // the kernel's command line is not ours
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	cfg := ServerConfig{
		Version: version, Orphans: *orphans, Reap: true,
		Log: slog.New(slog.NewTextHandler(stderr, nil)),
	}
	if os.Getenv("container") == ownContainer {
		cfg.Cgroup = "/sys/fs/cgroup"
	}
	// Not ignored: what is ignored here would be in every process that we start.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGHUP)
	var err error
	if *fd >= 0 && !*child && !first { // PID 1 outlives its jobs as it is: they cannot kill it, and end with it
		err = supervise(*fd)
	} else {
		err = run(cfg, *fd, *port, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "tgr-guest: %v\n", err)
	}
	if machine {
		PowerOff() // a kernel whose init returns panics
	}
	if err != nil {
		return 1
	}
	return 0
}

// ownContainer is the value of the variable "container" in those that vm/container makes.
const ownContainer = "tgr"

func run(cfg ServerConfig, fd int, port string, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	// The agent waits for pipes and its stream, and computes next to nothing: threads that wake each other for it cost more
	// than they do, most of all where each is woken across the processors of an emulator.
	runtime.GOMAXPROCS(1)
	var err error
	switch {
	case fd < 0 && os.Getpid() == 1:
		link, err := Boot(stderr)
		if err != nil {
			return err
		}
		cfg.Machine, cfg.Scratch, cfg.engine = true, link.Scratch, link.engine
		if link.Listener != nil {
			return ended(ctx, NewServer(cfg).Listen(ctx, link.Listener))
		}
		return ended(ctx, servePort(ctx, link.Port, cfg))
	case port != "":
		f, err := os.OpenFile(port, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		cfg.Machine = true
		return ended(ctx, servePort(ctx, f, cfg))
	case fd >= 0:
		if err := becomeSubreaper(); err != nil {
			return err
		}
		err = serveFD(ctx, fd, cfg)
		return errors.Join(ended(ctx, err), killDescendants())
	default:
		return errors.New("want -fd or -port, or to be PID 1")
	}
}

// servePort serves on a port of the machine.
func servePort(ctx context.Context, f *os.File, cfg ServerConfig) error {
	conn, err := newPortConn(f)
	if err != nil {
		f.Close()
		return err
	}
	cfg.Port = true
	return Serve(ctx, conn, cfg)
}

// supervise runs the agent as a child, and when that has ended, however it did, kills what it left: a job can
// kill its agent, and the agent's orphans would be nobody's. Each of the two goes when the other does.
func supervise(fd int) error {
	if err := becomeSubreaper(); err != nil {
		return err
	}
	runtime.LockOSThread() // the agent is told of the death of the thread that started it
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	args := append(append([]string{}, os.Args...), "-fd", "3", "-child")
	pid, err := syscall.ForkExec("/proc/self/exe", args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, uintptr(fd)},
		Sys:   &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM},
	})
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	unix.Close(fd)
	go func() {
		for range signals {
			unix.Kill(pid, unix.SIGTERM)
		}
	}()
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the agent: %w", err)
		}
		if got == pid {
			break
		}
	}
	err = killDescendants()
	if status.Signaled() {
		return errors.Join(fmt.Errorf("the agent was ended by %v", status.Signal()), err)
	}
	if status.ExitStatus() != 0 {
		return errors.Join(fmt.Errorf("the agent ended with status %d", status.ExitStatus()), err)
	}
	return err
}

func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// ended takes a signal that asked us to end for no error.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// serveFD serves on an inherited socket, listening or connected.
func serveFD(ctx context.Context, fd int, cfg ServerConfig) error {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "fd "+strconv.Itoa(fd))
	if f == nil {
		return fmt.Errorf("fd %d is none", fd)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("fd %d: %w", fd, err)
	}
	if listens == 0 {
		conn, err := net.FileConn(f)
		if err != nil {
			return fmt.Errorf("fd %d: %w", fd, err)
		}
		f.Close()
		return Serve(ctx, conn, cfg)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("fd %d: %w", fd, err)
	}
	f.Close()
	s := NewServer(cfg)
	defer s.Close()
	return s.Listen(ctx, l)
}

// killDescendants kills all that descends from this process, a subreaper, until nothing does.
func killDescendants() error {
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(2 * time.Millisecond) {
		if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err == unix.ECHILD {
			return nil // the kernel's word: no need to look at every process of the host
		}
		children := childrenOf(os.Getpid())
		if len(children) == 0 {
			return nil
		}
		for _, pid := range children {
			unix.Kill(pid, unix.SIGKILL)
			syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
	}
	return errors.New("processes outlive SIGKILL")
}

// portConn is a stream of the host's that a file stands for: a virtio-serial port, or a connection of vsock.
type portConn struct {
	*os.File
	raw syscall.RawConn
}

// newPortConn takes a file that does not block.
func newPortConn(f *os.File) (portConn, error) {
	raw, err := f.SyscallConn()
	return portConn{f, raw}, err
}

// LocalAddr names the port.
func (p portConn) LocalAddr() net.Addr { return portAddr(p.Name()) }

// RemoteAddr names the port too: the host has no address.
func (p portConn) RemoteAddr() net.Addr { return portAddr(p.Name()) }

// Read reads what is there. It does not tell Go's scheduler of its system calls, none of which waits: what the scheduler
// does about them would be a third of all that an emulated machine does until its agent has answered.
func (p portConn) Read(b []byte) (int, error) {
	n, err := p.call("read", p.raw.Read, unix.SYS_READ, b)
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write writes all of b. See Read.
func (p portConn) Write(b []byte) (total int, err error) {
	for len(b) > 0 && err == nil {
		var n int
		n, err = p.call("write", p.raw.Write, unix.SYS_WRITE, b)
		total, b = total+n, b[n:]
	}
	return total, err
}

// call makes one system call, when await says that it need not wait.
func (p portConn) call(op string, await func(func(uintptr) bool) error, trap uintptr, b []byte) (n int, err error) {
	var errno syscall.Errno
	err = await(func(fd uintptr) bool {
		for {
			var r uintptr
			r, _, errno = unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
			if errno == 0 {
				n = int(r)
			}
			if errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		err = os.ErrClosed // the only other reason not to call
	case err == nil && errno != 0:
		err = &os.PathError{Op: op, Path: p.Name(), Err: errno}
	}
	return n, err
}

// awaitHost waits until a host is connected, without asking again and again: a machine that waits for its host should
// cost nothing.
func (p portConn) awaitHost() error {
	var perr error
	err := p.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		_, perr = unix.Poll(fds, 0)
		return perr != nil && perr != unix.EINTR || fds[0].Revents&unix.POLLHUP == 0
	})
	return errors.Join(err, perr)
}

type portAddr string

func (portAddr) Network() string  { return "virtio-serial" }
func (a portAddr) String() string { return string(a) }
