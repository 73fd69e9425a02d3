package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// What we need of linux/netfilter/nfnetlink_log.h.
const (
	ulogPacket   = unix.NFNL_SUBSYS_ULOG << 8
	ulogConfig   = unix.NFNL_SUBSYS_ULOG<<8 | 1
	attrPayload  = 9
	attrPrefix   = 10
	cfgCmd       = 1
	cfgMode      = 2
	cfgThreshold = 5
	cmdBind      = 1
	copyPacket   = 2
	genmsgSize   = 4 // struct nfgenmsg: family, version, group
)

// packetLog is the log of the packets that a slot's filter denies.
type packetLog struct{ conn *mdnetlink.Conn }

func openPacketLog(ns netns.NsHandle) (*packetLog, error) {
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, &mdnetlink.Config{NetNS: int(ns)})
	if err != nil {
		return nil, fmt.Errorf("log of denied packets: %w", err)
	}
	attrs, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{
		{Type: cfgCmd, Data: []byte{cmdBind}},
		{Type: cfgMode, Data: []byte{0, 0, 0, 128, copyPacket, 0}},
		{Type: cfgThreshold, Data: []byte{0, 0, 0, 1}}, // each at once
	})
	if err == nil {
		data := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, logGroup)
		_, err = conn.Execute(mdnetlink.Message{
			Header: mdnetlink.Header{Type: ulogConfig, Flags: mdnetlink.Request | mdnetlink.Acknowledge},
			Data:   append(data, attrs...),
		})
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("log of denied packets: %w", err)
	}
	return &packetLog{conn}, nil
}

// Close ends read.
func (l *packetLog) Close() error { return l.conn.Close() }

// read passes denied packets on until the log is closed.
func (l *packetLog) read(on func(why string, packet []byte)) {
	for {
		messages, err := l.conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			continue // some were lost: that many were denied
		}
		if err != nil {
			return
		}
		for _, m := range messages {
			if m.Header.Type != ulogPacket || len(m.Data) < genmsgSize {
				continue
			}
			attrs, err := mdnetlink.UnmarshalAttributes(m.Data[genmsgSize:])
			if err != nil {
				continue
			}
			var why string
			var packet []byte
			for _, a := range attrs {
				switch a.Type {
				case attrPrefix:
					why = string(trimZero(a.Data))
				case attrPayload:
					packet = a.Data
				}
			}
			on(why, packet)
		}
	}
}

func trimZero(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// onPacket tells of a packet that was denied.
func (g *guard) onPacket(why string, packet []byte) {
	d, from, err := parsePacket(packet)
	if err != nil {
		return
	}
	switch why {
	case logSpoof:
		d.Reason = reasonSpoof
		if from != Guest() {
			d.Reason += ": " + from.String()
		}
	case logAddress:
		d.Reason = g.refusal(d.Addr.Addr())
	case logGateway:
		d.Reason = reasonHost
	case logProtocol:
		d.Reason = reasonProto
	case logLimit:
		d.Reason = reasonLimit
	default:
		d.Reason = reasonPort
		if g.current().mode == vm.EgressNone {
			d.Reason = reasonNone
		}
	}
	g.deny(d)
}

// parsePacket reads what a packet is and where it goes to. It may have been cut off after 128 bytes.
func parsePacket(b []byte) (d vm.Denial, from netip.Addr, err error) {
	short := errors.New("packet is too short")
	if len(b) == 0 {
		return d, from, short
	}
	var proto byte
	var rest []byte
	var to netip.Addr
	switch b[0] >> 4 {
	case 4:
		size := int(b[0]&15) * 4
		if size < 20 || len(b) < size {
			return d, from, short
		}
		proto, rest = b[9], b[size:]
		from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		if binary.BigEndian.Uint16(b[6:8])&0x1fff != 0 {
			rest = nil // a later fragment has no ports
		}
	case 6:
		if len(b) < 40 {
			return d, from, short
		}
		proto, rest = b[6], b[40:]
		from, to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return d, from, fmt.Errorf("packet of IP version %d", b[0]>>4)
	}
	var port uint16
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(rest) >= 4 {
			port = binary.BigEndian.Uint16(rest[2:4])
		}
	}
	d.Proto, d.Addr = protocolName(proto), netip.AddrPortFrom(to, port)
	return d, from, nil
}

func protocolName(p byte) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return "icmp"
	}
	return fmt.Sprintf("ip protocol %d", p)
}
