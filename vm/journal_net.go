package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NetKind is a kind of NetItem.
type NetKind string

// The kinds of NetItem.
const (
	NetNamespace NetKind = "namespace" // mounted at NamespacePath(Name), as ip-netns(8) has them
	NetLink      NetKind = "link"      // a network interface
	NetTable     NetKind = "table"     // an nftables table of family inet
)

// NetItem is a piece of the host's network that a machine has.
type NetItem struct {
	Kind NetKind `json:"kind"`
	Name string  `json:"name"`
	In   string  `json:"in,omitempty"` // path of the network namespace that it is in; "": this process's
}

// namespaceDir is where network namespaces have names.
const namespaceDir = "/run/netns"

var netName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^tg[A-Za-z0-9_-]{1,13}$`)
})

// NamespacePath is the file that a network namespace of this name is mounted at.
func NamespacePath(name string) string { return filepath.Join(namespaceDir, name) }

// valid says that nothing but what is ours can ever be removed on the word of a journal: all our names begin with
// "tg" and have at most 15 bytes, which is what an interface's may have.
func (n NetItem) valid() error {
	if !netName().MatchString(n.Name) {
		return fmt.Errorf("network item %q: want a name of at most 15 bytes that begins with tg", n.Name)
	}
	if n.In != "" && (!filepath.IsAbs(n.In) || n.Kind == NetNamespace) {
		return fmt.Errorf("network item %s in %q: want the path of a namespace", n.Name, n.In)
	}
	switch n.Kind {
	case NetNamespace, NetLink, NetTable:
		return nil
	}
	return fmt.Errorf("network item %s: kind %q", n.Name, n.Kind)
}

// Remove removes the item; one that is not there is removed. The kernel ends a namespace a moment later, when
// nothing is in it any more.
func (n NetItem) Remove() error {
	if err := n.valid(); err != nil {
		return err
	}
	if n.Kind == NetNamespace {
		return removeNamespace(NamespacePath(n.Name))
	}
	in := netns.None()
	if n.In != "" {
		var err error
		if in, err = netns.GetFromPath(n.In); errors.Is(err, fs.ErrNotExist) {
			return nil // and what was in it is gone too
		} else if err != nil {
			return fmt.Errorf("namespace %s: %w", n.In, err)
		}
		defer in.Close()
	}
	if n.Kind == NetTable {
		return removeTable(in, n.Name)
	}
	return removeLink(in, n.Name)
}

func removeNamespace(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted; not there
		return fmt.Errorf("unmount namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("namespace: %w", err)
	}
	return nil
}

func removeLink(in netns.NsHandle, name string) error {
	h, err := handleIn(in)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

func handleIn(in netns.NsHandle) (*netlink.Handle, error) {
	if in.IsOpen() {
		return netlink.NewHandleAt(in, unix.NETLINK_ROUTE)
	}
	return netlink.NewHandle(unix.NETLINK_ROUTE)
}

func removeTable(in netns.NsHandle, name string) error {
	var opts []nftables.ConnOption
	if in.IsOpen() {
		opts = append(opts, nftables.WithNetNSFd(int(in)))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s: %w", name, err)
	}
	return nil
}
