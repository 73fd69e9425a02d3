package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// What every machine sees, the same in all slots: a snapshot of one machine fits every slot.
const (
	GuestMAC   = "02:54:47:52:00:02"
	gatewayMAC = "02:54:47:52:00:01"
	innerBits  = 30
)

// Guest is the address of a machine, Gateway that of its gateway, which is also its DNS server.
func Guest() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, 2}) }

// Gateway is the address of a machine's gateway and DNS server.
func Gateway() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, 1}) }

// GuestPrefix is Guest with the size of the network that it shares with Gateway.
func GuestPrefix() netip.Prefix { return netip.PrefixFrom(Guest(), innerBits) }

// Names inside a slot's namespace.
const (
	tapName    = "tap0"    // the machine's side
	uplinkName = "uplink0" // the host's side
	guestName  = "eth0"    // in a container's namespace
)

// openTap makes the tap device in the thread's namespace. It lives as long as the file.
func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(tapName)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap device: %w", err)
	}
	return os.NewFile(uintptr(fd), tapName), nil
}

// wires are the interfaces of a slot.
type wires struct {
	slot, inner, host *netlink.Handle // inner only where there is no tap
	limit             int64           // bytes a second, each way
}

// connect joins a slot's namespace to the host: a pair of interfaces with an address each.
func (w *wires) connect(slot netns.NsHandle, name string, net31 netip.Prefix) error {
	hostAddr, slotAddr := net31.Addr(), net31.Addr().Next()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: uplinkName, PeerNamespace: netlink.NsFd(slot)}
	if err := w.host.LinkAdd(pair); err != nil {
		return fmt.Errorf("make interface %s: %w", name, err)
	}
	if err := raise(w.host, name, netip.PrefixFrom(hostAddr, 31)); err != nil {
		return err
	}
	if err := raise(w.slot, uplinkName, netip.PrefixFrom(slotAddr, 31)); err != nil {
		return err
	}
	if err := route(w.slot, uplinkName, hostAddr); err != nil {
		return err
	}
	return shape(w.slot, uplinkName, w.limit)
}

// serve gives the machine's side of a slot its address. The machine's own is told, not asked for: it cannot claim
// another.
func (w *wires) serve() error {
	if err := raise(w.slot, "lo", netip.Prefix{}); err != nil {
		return err
	}
	link, err := w.slot.LinkByName(tapName)
	if err != nil {
		return fmt.Errorf("interface %s: %w", tapName, err)
	}
	gateway, err := net.ParseMAC(gatewayMAC)
	guest, err2 := net.ParseMAC(GuestMAC)
	if err = errors.Join(err, err2); err != nil {
		return err
	}
	if err := w.slot.LinkSetHardwareAddr(link, gateway); err != nil {
		return fmt.Errorf("interface %s: %w", tapName, err)
	}
	if err := raise(w.slot, tapName, netip.PrefixFrom(Gateway(), innerBits)); err != nil {
		return err
	}
	err = w.slot.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_INET,
		IP: Guest().AsSlice(), HardwareAddr: guest})
	if err != nil {
		return fmt.Errorf("interface %s: neighbour: %w", tapName, err)
	}
	return shape(w.slot, tapName, w.limit)
}

// inhabit makes, instead of a tap, a pair of interfaces between the slot and a second namespace, which it configures
// as a machine would.
func (w *wires) inhabit(inner netns.NsHandle) error {
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: tapName}, PeerName: guestName, PeerNamespace: netlink.NsFd(inner), PeerHardwareAddr: mac}
	if err := w.slot.LinkAdd(pair); err != nil {
		return fmt.Errorf("make interface %s: %w", guestName, err)
	}
	if err := raise(w.inner, "lo", netip.Prefix{}); err != nil {
		return err
	}
	return raise(w.inner, guestName, GuestPrefix())
}

// raise gives an interface its address and starts it.
func raise(h *netlink.Handle, name string, addr netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err == nil && addr.IsValid() {
		mask := net.CIDRMask(addr.Bits(), 32)
		// Without a label: an interface of a name as long as ours has no room for one.
		err = h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: mask}})
	}
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// route sends everything through a gateway.
func route(h *netlink.Handle, name string, gateway netip.Addr) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	}
	if err != nil {
		return fmt.Errorf("default route through %s: %w", gateway, err)
	}
	return nil
}

// shape bounds what leaves through an interface, in bytes a second, with a token bucket of 20 ms.
func shape(h *netlink.Handle, name string, bytes int64) error {
	link, err := h.LinkByName(name)
	if err == nil {
		rate := uint64(bytes)
		burst := max(rate/50, 128<<10) // a segment of 64 KiB has to fit, also one with headers
		err = h.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate, Limit: uint32(min(2*burst, 16<<20)), Buffer: bucket(rate, burst),
		})
	}
	if err != nil {
		return fmt.Errorf("limit the rate of interface %s: %w", name, err)
	}
	return nil
}

// bucket is what the kernel wants for a token bucket of burst bytes: the time that it lasts, in its own ticks of 64 ns.
func bucket(rate, burst uint64) uint32 {
	return uint32(min(burst*1_000_000_000/rate>>6, 1<<31))
}

// hostAddrs are the addresses that the host has, but for loopback.
func hostAddrs(h *netlink.Handle) ([]netip.Addr, error) {
	list, err := h.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLoopback() {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}
