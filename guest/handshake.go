package guest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strings"
	"time"
)

// The handshake. The stream may hold the rest of an earlier session, in both directions, and may lose bytes
// while no host is connected. So each part begins with a mark and the host's nonce, and both ends skip whatever
// is not what they wait for:
//
//	host   HELLO nonce            again after helloFirst, then ever later up to helloEvery, until answered
//	agent  READY nonce Hello      to each
//	host   START nonce            the multiplexer begins right behind it
//	agent  GOING nonce            and behind this
//
// The marks begin with a byte that the multiplexer refuses, so a HELLO ends a session that the agent still
// believes in. Where it lands in the middle of a frame that was cut short, the padding of a later HELLO fills
// the frame first.
const (
	markSize   = 16
	nonceSize  = 16
	helloFirst = 10 * time.Millisecond // a machine that was just restored may miss the first
	helloEvery = 100 * time.Millisecond
	padAfter   = 5       // HELLOs without padding
	maxHello   = 4 << 10 // bytes of JSON
	maxSkip    = 8 << 20 // bytes of an earlier session that the host skips

	helloMark = "\xfftgr/hello mark\n"
	readyMark = "\xfftgr/ready mark\n"
	startMark = "\xfftgr/start mark\n"
	goingMark = "\xfftgr/going mark\n"
)

// scratchChars are those of a path that means the same in every list and option that a job's paths get into.
const scratchChars = "/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

// handshakeWithin bounds Connect where ctx does not.
const handshakeWithin = 60 * time.Second

// Hail asks the agent on conn who it is, and no more: there is no session, and the one before has ended. An agent that was
// hailed waits for the host's next word, and has found out before what it will then say of itself. The caller closes conn.
func Hail(ctx context.Context, conn net.Conn) (h Hello, err error) {
	err = handshake(ctx, conn, func(ctx context.Context) error {
		h, _, _, err = hail(ctx, conn)
		return err
	})
	return h, err
}

// greet is the host's part of the handshake. It returns what the agent says of itself and the reader to go on with.
func greet(ctx context.Context, conn net.Conn) (h Hello, r *bufio.Reader, err error) {
	err = handshake(ctx, conn, func(ctx context.Context) error {
		var nonce [nonceSize]byte
		if h, r, nonce, err = hail(ctx, conn); err != nil {
			return err
		}
		return begin(conn, r, nonce)
	})
	return h, r, err
}

// handshake runs a part of it within its time, and until ctx ends.
func handshake(ctx context.Context, conn net.Conn, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeWithin)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := do(ctx)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return fmt.Errorf("handshake with the agent: %w", err)
	}
	return nil
}

// hail says HELLO until the agent is READY.
func hail(ctx context.Context, conn net.Conn) (h Hello, r *bufio.Reader, nonce [nonceSize]byte, err error) {
	rand.Read(nonce[:])
	answered, sent := make(chan struct{}), make(chan error, 1)
	go func() { sent <- sendHellos(ctx, conn, nonce, answered) }()
	r = bufio.NewReaderSize(conn, maxData)
	h, err = awaitReady(r, nonce)
	close(answered)
	if err != nil {
		conn.SetDeadline(time.Unix(1, 0)) // frees a sender that hangs
	}
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	if err == nil && h.Protocol != Protocol {
		err = fmt.Errorf("the agent speaks protocol %d, this program %d: rebuild the machine's image", h.Protocol, Protocol)
	}
	return h, r, nonce, err
}

// begin says START until the agent is GOING.
func begin(conn net.Conn, r *bufio.Reader, nonce [nonceSize]byte) error {
	// The agent may be answering another hello meanwhile: without a buffer on the way it reads on only when that has
	// been read.
	started := make(chan error, 1)
	go func() {
		_, err := conn.Write(append([]byte(startMark), nonce[:]...))
		if err != nil {
			conn.SetDeadline(time.Unix(1, 0))
		}
		started <- err
	}()
	skip := maxSkip
	err := scan(r, goingMark, nonce[:], &skip)
	if err != nil {
		conn.SetDeadline(time.Unix(1, 0))
	}
	if startErr := <-started; startErr != nil {
		err = startErr
	}
	return err
}

func sendHellos(ctx context.Context, conn net.Conn, nonce [nonceSize]byte, answered <-chan struct{}) error {
	wait := helloFirst
	timer := time.NewTimer(wait)
	defer timer.Stop()
	hello := append([]byte(helloMark), nonce[:]...)
	for n := 0; ; n++ {
		b := hello
		if n >= padAfter && n%padAfter == 0 {
			b = append(bytes.Repeat([]byte{0xff}, maxFrame+64), hello...)
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		select {
		case <-answered:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			wait = min(2*wait, helloEvery)
			timer.Reset(wait)
		}
	}
}

func awaitReady(r *bufio.Reader, nonce [nonceSize]byte) (Hello, error) {
	skip := maxSkip
	if err := scan(r, readyMark, nonce[:], &skip); err != nil {
		return Hello{}, err
	}
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return Hello{}, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxHello {
		return Hello{}, fmt.Errorf("%w: a hello of %d bytes", ErrProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return Hello{}, err
	}
	var h Hello
	if err := json.Unmarshal(b, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: hello: %w", ErrProtocol, err)
	}
	if h.Scratch != "" && (h.Scratch[0] != '/' || path.Clean(h.Scratch) != h.Scratch || strings.Trim(h.Scratch, scratchChars) != "") {
		return Hello{}, fmt.Errorf("%w: hello: the folder %q", ErrProtocol, clip(h.Scratch, 256))
	}
	return h, nil
}

// scan reads past mark and nonce, skipping at most *skip bytes, which it counts down.
func scan(r *bufio.Reader, mark string, nonce []byte, skip *int) error {
	for {
		got, err := scanMark(r, skip, mark)
		if err != nil {
			return err
		}
		if bytes.Equal(got.nonce[:], nonce) {
			return nil
		}
	}
}

type marked struct {
	mark  string
	nonce [nonceSize]byte
}

// scanMark reads past the first of marks, all of markSize bytes, and the nonce behind it.
func scanMark(r *bufio.Reader, skip *int, marks ...string) (marked, error) {
	for {
		b, err := r.Peek(markSize)
		if err != nil {
			// A few bytes that are no mark must not hide that the stream ended.
			return marked{}, err
		}
		for _, m := range marks {
			if string(b) == m {
				r.Discard(markSize)
				got := marked{mark: m}
				_, err := io.ReadFull(r, got.nonce[:])
				return got, err
			}
		}
		// On to the next byte that may begin a mark.
		n := bytes.IndexByte(b[1:], marks[0][0]) + 1
		if n == 0 {
			n = markSize
		}
		if *skip -= n; *skip < 0 {
			return marked{}, fmt.Errorf("%w: no answer to the handshake among %d bytes", ErrProtocol, maxSkip)
		}
		r.Discard(n)
	}
}

// awaitHost returns when there may be a host on a port again, or ctx has ended.
func awaitHost(ctx context.Context, conn net.Conn) {
	if p, ok := conn.(interface{ awaitHost() error }); ok && p.awaitHost() == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}

// answer is the agent's part: it reads until a host has started a session. On a port that survives its hosts
// the end of the stream only says that no host is connected: answer waits.
func answer(ctx context.Context, conn net.Conn, r *bufio.Reader, port bool, hello func() []byte) error {
	var current [nonceSize]byte
	greeted := false
	for {
		unbounded := int(^uint(0) >> 1)
		got, err := scanMark(r, &unbounded, helloMark, startMark)
		if port && ctx.Err() == nil && (errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF)) {
			awaitHost(ctx, conn)
			conn.SetDeadline(time.Time{})
			continue
		}
		if err != nil {
			return err
		}
		if got.mark == startMark {
			if greeted && got.nonce == current {
				_, err := conn.Write(append([]byte(goingMark), got.nonce[:]...))
				return err
			}
			continue
		}
		greeted, current = true, got.nonce
		text := hello()
		b := append([]byte(readyMark), got.nonce[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		if _, err := conn.Write(append(b, text...)); err != nil && !port {
			return err
		}
	}
}
