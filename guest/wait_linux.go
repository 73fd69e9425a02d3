package guest

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waiter starts processes and waits for them. As PID 1 or a subreaper (all) it also waits for the orphans that
// it inherits, which it must not confuse with its own: a child is looked at first (WNOWAIT) and only taken from
// the kernel under the lock that starting holds too. So a pid cannot be used again between a child's death and
// the moment in which it is known whose it was.
type waiter struct {
	all bool

	mu    sync.Mutex
	ended map[int]func(end) // of our own

	stop chan struct{}
	work sync.WaitGroup
}

func newWaiter(all bool) *waiter {
	w := &waiter{all: all, ended: map[int]func(end){}, stop: make(chan struct{})}
	if all {
		died := make(chan os.Signal, 1)
		signal.Notify(died, unix.SIGCHLD)
		w.work.Go(func() {
			defer signal.Stop(died)
			for {
				for w.reap(unix.P_ALL, 0, unix.WNOHANG) {
				}
				select {
				case <-died:
				case <-w.stop:
					return
				}
			}
		})
	}
	return w
}

// start starts a process; started is called before anything can end it, ended once.
func (w *waiter) start(path string, args []string, attr *syscall.ProcAttr, started func(pid int), ended func(end)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return err
	}
	w.ended[pid] = ended
	started(pid)
	if !w.all {
		w.work.Go(func() { w.reap(unix.P_PID, pid, 0) })
	}
	return nil
}

// reap takes one dead child, and reports whether there was one.
func (w *waiter) reap(which, id, flags int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(which, id, &info, unix.WEXITED|unix.WNOWAIT|flags, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		break
	}
	pid := sigchldPID(&info)
	if pid == 0 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var e end
	if got, err := syscall.Wait4(pid, &e.status, syscall.WNOHANG, &e.usage); err != nil || got != pid {
		return true // the fork that failed took it
	}
	if ended := w.ended[pid]; ended != nil {
		delete(w.ended, pid)
		ended(e)
	}
	return true
}

// alive runs f with the lock that keeps pid from being used again, if pid is a child of ours that was not waited for.
func (w *waiter) alive(pid int, f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended[pid] == nil {
		return false
	}
	f()
	return true
}

// childless reports whether nothing descends from this process, as the kernel says: who inherits orphans need not look at
// every process of the machine then.
func (w *waiter) childless() bool {
	return w.all && unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil) == unix.ECHILD
}

// close waits until every process that was started has ended.
func (w *waiter) close() {
	close(w.stop)
	w.work.Wait()
}

// sigchldPID reads si_pid, which the package does not name: on 64-bit Linux it follows three numbers and padding.
func sigchldPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
