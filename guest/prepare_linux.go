package guest

import (
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The random device's requests, from linux/random.h.
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
	maxEntropy    = 4096
)

// prepare is the agent's part of Prepare, but for what clones have in common besides.
func prepare(id *Identity) error {
	if id.Hostname != "" {
		if len(id.Hostname) > 64 {
			return fmt.Errorf("prepare: hostname of %d bytes, the limit is 64: %w", len(id.Hostname), ErrRefused)
		}
		if _, err := raw(unix.SYS_SETHOSTNAME, uintptr(unsafe.Pointer(unsafe.StringData(id.Hostname))), uintptr(len(id.Hostname)), 0, 0); err != nil {
			return fmt.Errorf("prepare: hostname: %w", err)
		}
	}
	if !id.Time.IsZero() {
		ts := unix.NsecToTimespec(id.Time.UnixNano())
		if _, err := raw(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&ts)), 0, 0); err != nil {
			return fmt.Errorf("prepare: clock: %w", err)
		}
	}
	if id.Shift != 0 {
		if err := shiftClock(id.Shift); err != nil {
			return fmt.Errorf("prepare: shift the clock by %v: %w", id.Shift, err)
		}
	}
	return nil
}

// empty reports whether id changes nothing.
func (id *Identity) empty() bool {
	return id.Hostname == "" && id.Time.IsZero() && len(id.Entropy) == 0 && id.Shift == 0
}

// shiftClock puts the clock on, or back, in one go: to read and to set it would lose what passes in between.
func shiftClock(by time.Duration) error {
	const second = int64(time.Second)
	s, ns := int64(by)/second, int64(by)%second
	if ns < 0 { // the kernel wants it so: adjtimex(2)
		s, ns = s-1, ns+second
	}
	t := unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Sec: s, Usec: ns}}
	_, err := raw(unix.SYS_ADJTIMEX, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return err
}

// addEntropy credits b to the kernel's generator and has it take it at once: the clones of a snapshot begin with
// the same state.
func (c *clone) addEntropy(b []byte) error {
	if len(b) > maxEntropy {
		return fmt.Errorf("%d bytes of entropy, the limit is %d: %w", len(b), maxEntropy, ErrRefused)
	}
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(b))) // struct rand_pool_info
	info = binary.NativeEndian.AppendUint32(info, uint32(len(b)))
	info = append(info, b...)
	if _, err := raw(unix.SYS_IOCTL, c.random, rndAddEntropy, uintptr(unsafe.Pointer(&info[0])), 0); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	if _, err := raw(unix.SYS_IOCTL, c.random, rndReseedCRNG, 0, 0); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}
