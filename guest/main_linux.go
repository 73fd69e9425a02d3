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
	machine := os.Getpid() == 1 && os.Getenv("container") == "" // of which we are PID 1, rather than of a container
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
	if *fd >= 0 && !*child && !machine {
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
		cfg.Machine = true
		if link.Listener != nil {
			return ended(ctx, NewServer(cfg).Listen(ctx, link.Listener))
		}
		cfg.Port = true
		return ended(ctx, Serve(ctx, portConn{link.Port}, cfg))
	case port != "":
		f, err := os.OpenFile(port, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		cfg.Port, cfg.Machine = true, true
		err = Serve(ctx, portConn{f}, cfg)
		return ended(ctx, err)
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

// portConn is a virtio-serial port as a stream.
type portConn struct{ *os.File }

// LocalAddr names the port.
func (p portConn) LocalAddr() net.Addr { return portAddr(p.Name()) }

// RemoteAddr names the port too: the host has no address.
func (p portConn) RemoteAddr() net.Addr { return portAddr(p.Name()) }

// awaitHost waits until a host is connected, without asking again and again: a machine that waits for its host should
// cost nothing.
func (p portConn) awaitHost() error {
	raw, err := p.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		_, perr = unix.Poll(fds, 0)
		return perr != nil && perr != unix.EINTR || fds[0].Revents&unix.POLLHUP == 0
	})
	return errors.Join(err, perr)
}

type portAddr string

func (portAddr) Network() string  { return "virtio-serial" }
func (a portAddr) String() string { return string(a) }
