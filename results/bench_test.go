package results

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkUpload sends a cache as GitHub's client does, in one piece or in blocks of 32 MiB, 8 at a time.
func BenchmarkUpload(b *testing.B) {
	data := make([]byte, 256<<20)
	rand.Read(data)
	for _, blocks := range []int{1, 8} {
		b.Run(fmt.Sprint("blocks=", blocks), func(b *testing.B) {
			c := began(b, opened(b, Config{}), jobOn(1, "main"))
			b.SetBytes(int64(len(data)))
			b.ResetTimer()
			n := 0
			for b.Loop() {
				n++
				key := fmt.Sprint("k", n)
				data[0], data[len(data)-1] = byte(n), byte(n) // or nothing would have to be kept
				addr := c.create(key)
				if blocks == 1 {
					c.want(201, c.do("PUT", addr, bytes.NewReader(data), "x-ms-blob-type", "BlockBlob"))
				} else {
					var wg sync.WaitGroup
					var list []int
					for i := range blocks {
						list = append(list, i)
						size := len(data) / blocks
						wg.Go(func() {
							c.want(201, c.do("PUT", addr+"&comp=block&blockid="+blockID(i), bytes.NewReader(data[i*size:(i+1)*size])))
						})
					}
					wg.Wait()
					c.want(201, c.blockList(addr, list...))
				}
				c.want(200, c.finalize(key, len(data)))
			}
		})
	}
}

// BenchmarkArtifact uploads an artifact as GitHub's client does, in blocks of 8 MiB, 5 at a time, and shows how long the
// end of it takes: with blocks whose ids are numbers, which its digest follows, and with others.
func BenchmarkArtifact(b *testing.B) {
	data := make([]byte, 256<<20)
	rand.Read(data)
	const block = 8 << 20
	for name, id := range map[string]func(int) string{"followed": numbered, "read again": blockID} {
		b.Run(name, func(b *testing.B) {
			c := began(b, opened(b, Config{}), jobOn(1, "main"))
			b.SetBytes(int64(len(data)))
			var atEnd time.Duration
			n := 0
			for b.Loop() {
				n++
				for i := 0; i < len(data); i += block {
					data[i] = byte(n) // or nothing would have to be kept
				}
				artifact := fmt.Sprint("x", n)
				url := c.want(200, c.artifact("CreateArtifact", map[string]any{"name": artifact, "version": 7})).field("signed_upload_url")
				var wg sync.WaitGroup
				slots, list := make(chan struct{}, 5), ""
				for i := range len(data) / block {
					slots <- struct{}{}
					list += "<Latest>" + id(i) + "</Latest>"
					wg.Go(func() {
						c.want(201, c.do("PUT", url+"&comp=block&blockid="+id(i), bytes.NewReader(data[i*block:(i+1)*block])))
						<-slots
					})
				}
				wg.Wait()
				c.want(201, c.do("PUT", url+"&comp=blocklist", strings.NewReader("<BlockList>"+list+"</BlockList>")))
				began := time.Now()
				c.want(200, c.artifact("FinalizeArtifact", map[string]any{"name": artifact, "size": fmt.Sprint(len(data))}))
				atEnd += time.Since(began)
			}
			b.ReportMetric(float64(atEnd.Milliseconds())/float64(n), "ms-at-the-end")
		})
	}
}

// BenchmarkDownload fetches a cache.
func BenchmarkDownload(b *testing.B) {
	c := began(b, opened(b, Config{}), jobOn(1, "main"))
	data := make([]byte, 256<<20)
	rand.Read(data)
	c.want(200, c.save("k", data))
	addr := c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "k", "version": version})).field("signed_download_url")
	b.SetBytes(int64(len(data)))
	buf := make([]byte, 256<<10)
	b.ResetTimer()
	for b.Loop() {
		resp, err := http.Get(addr)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
		resp.Body.Close()
		if err != nil || n != int64(len(data)) {
			b.Fatalf("%d bytes, %v", n, err)
		}
	}
}

// BenchmarkLookUp finds a cache among a thousand.
func BenchmarkLookUp(b *testing.B) {
	c := began(b, opened(b, Config{}), jobOn(1, "main"))
	for i := range 1000 {
		c.want(200, c.save(fmt.Sprint("go-", i), []byte{byte(i)}))
	}
	for b.Loop() {
		if key, _ := c.restore("go-none", "go-"); key != "go-999" {
			b.Fatal(key)
		}
	}
}
