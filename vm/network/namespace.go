package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// newNamespace makes a network namespace with a name, which the caller has journalled. The caller closes the handle.
func newNamespace(name string) (netns.NsHandle, error) {
	path := vm.NamespacePath(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return netns.None(), fmt.Errorf("network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return netns.None(), fmt.Errorf("network namespace: %w", err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return netns.None(), err
	}
	h, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), fmt.Errorf("network namespace %s: %w", path, err)
	}
	return h, nil
}

// onThread runs fn on an operating system thread of its own, which ends with it: fn may change the thread's
// namespaces, and nothing else ever runs in them by mistake.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- fn()
	}()
	return <-done
}

// inside runs fn on a thread that is in a namespace. Sockets that fn makes, and processes that it starts, stay in it;
// goroutines that it starts are not. A handle that is not open is this process's own namespace.
func inside(ns netns.NsHandle, fn func() error) error {
	if !ns.IsOpen() {
		return fn()
	}
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// sysctl is a file below /proc/sys/net of the thread's namespace.
func sysctl(name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the kernel has no IPv6
	}
	return err
}
