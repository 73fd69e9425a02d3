package networktest

import (
	"crypto/rand"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// Namespace makes a network namespace with a name, which ends with the test.
func Namespace(t testing.TB, prefix string) (name string, ns netns.NsHandle) {
	t.Helper()
	name = prefix + strings.ToLower(rand.Text()[:8])
	path := vm.NamespacePath(name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o444))
	t.Cleanup(func() {
		ns.Close()
		if err := (vm.NetItem{Kind: vm.NetNamespace, Name: name}).Remove(); err != nil {
			t.Error(err)
		}
	})
	must(t, onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}))
	ns, err := netns.GetFromPath(path)
	must(t, err)
	return name, ns
}

// onThread runs fn on a thread that ends with it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// Inside runs fn on a thread that is in a namespace.
func Inside(ns netns.NsHandle, fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return fn()
	})
}

func raise(h *netlink.Handle, name, prefix string) error {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}); err != nil {
		return err
	}
	return h.LinkSetUp(link)
}

func route(h *netlink.Handle, name, gateway string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)})
}
