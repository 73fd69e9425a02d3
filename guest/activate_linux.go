package guest

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Programs look for a container engine that speaks Docker's API at engineSocket. Podman does, where somebody starts it:
// the agent, when somebody connects. It ends by itself when for engineIdle nobody had anything to ask.
const (
	enginePath   = "/usr/bin/podman"
	engineSocket = "/run/docker.sock"
	engineIdle   = 30 * time.Second
)

// engineScript starts the engine with the socket as descriptor 3, as sd_listen_fds(3) says, which wants to know the
// process by its number.
const engineScript = "LISTEN_PID=$$ exec " + enginePath + " system service --time "

// activator starts a program on a listening socket whenever somebody connects and it does not run.
type activator struct {
	socket *os.File
	cmd    command
}

// engineActivator makes the engine's socket; nil: the machine has no engine.
func engineActivator() (*activator, error) {
	if unix.Access(enginePath, unix.X_OK) != nil {
		return nil, nil
	}
	fd, err := listenUnix(engineSocket)
	if err != nil {
		return nil, err
	}
	script := fmt.Sprint(engineScript, int(engineIdle.Seconds()))
	return &activator{socket: os.NewFile(uintptr(fd), engineSocket), cmd: command{
		path: "/bin/sh", args: []string{"/bin/sh", "-c", script},
		attr: syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true}, Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LISTEN_FDS=1", "DISABLE_HC_SYSTEMD=true"}},
	}}, nil
}

// listenUnix makes a socket that everybody may use: whoever runs in a machine may become root there.
func listenUnix(path string) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, err
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Chmod(path, 0o666)
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// run serves until the socket is closed, and returns why it could not go on. A program that ends at once is started again no
// sooner than a second later.
func (a *activator) run(s *Server) error {
	raw, err := a.socket.SyscallConn()
	if err != nil {
		return err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	for {
		var began time.Time
		var failed error
		ended := make(chan end, 1)
		err := raw.Read(func(fd uintptr) bool {
			ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(ready, 0); err != nil || n == 0 {
				return false
			}
			a.cmd.attr.Files = []uintptr{uintptr(null), uintptr(null), uintptr(null), fd}
			began, failed = time.Now(), a.start(s, ended)
			return true
		})
		switch {
		case err != nil:
			return err
		case failed != nil:
			s.log.Warn("the container engine does not start", "error", failed)
		default:
			<-ended
		}
		time.Sleep(time.Until(began.Add(time.Second)))
	}
}

// start starts the program among the job's processes.
func (a *activator) start(s *Server, ended chan<- end) error {
	begun := s.shortages.group.admit(&a.cmd)
	defer begun()
	err := s.waits.start(a.cmd.path, a.cmd.args, &a.cmd.attr, func(int) {}, func(e end) { ended <- e })
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(a.cmd.args, " "), err)
	}
	return nil
}
