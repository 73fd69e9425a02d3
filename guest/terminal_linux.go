package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// endOfInput is what a terminal's driver takes for the end of input at the beginning of a line.
const endOfInput = 4

// terminal gives the process a terminal of its own as standard input and output. The host's end is the pump's file
// and, if there is input, a duplicate of it.
func (p *process) terminal(cmd *command, req *request) (theirs int, err error) {
	host, theirs, err := openTerminal()
	if err != nil {
		return -1, err
	}
	pump, err := newPump(host, kStdout, p.ring, &p.s.buffers)
	if err != nil {
		host.Close()
		unix.Close(theirs)
		return -1, err
	}
	p.pumps = append(p.pumps, pump)
	p.tty = true
	if req.Stdin {
		var fd int
		cerr := pump.raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
		if err = errors.Join(cerr, err); err != nil {
			unix.Close(theirs)
			return -1, err
		}
		p.stdin = os.NewFile(uintptr(fd), "terminal")
	}
	if c := cmd.attr.Sys.Credential; c != nil {
		unix.Fchown(theirs, int(c.Uid), -1) // so that programs may open /dev/tty; without it the session still works
	}
	cmd.attr.Sys.Setctty = true
	cmd.attr.Sys.Ctty = 0 // the child's standard input
	if err := p.resize(*req.TTY); err != nil {
		unix.Close(theirs)
		return -1, err
	}
	return theirs, nil
}

// openTerminal makes a terminal and returns both ends of it.
func openTerminal() (host *os.File, theirs int, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	host = os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		theirs, err = unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		host.Close()
		return nil, -1, fmt.Errorf("make a terminal: %w", err)
	}
	return host, theirs, nil
}

// resize sets the size of the process's terminal.
func (p *process) resize(size WindowSize) error {
	if !p.tty {
		return fmt.Errorf("process %q has no terminal: %w", p.id, ErrRefused)
	}
	var err error
	cerr := p.pumps[0].raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if cerr != nil {
		return fmt.Errorf("process %q has ended: %w", p.id, os.ErrNotExist)
	}
	return err
}
