# The gateway, from the root of this repository:
#
#	docker build -f examples/deploy/gateway.Dockerfile -t sealedchat-gateway .
#
# One static binary and the certificates of public authorities, no shell. It runs as user 65532,
# and with a read-only file system: it writes below /var/lib/sealedchat alone.
ARG GO=docker.io/library/golang:1.26
FROM ${GO} AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -C examples/gateway -trimpath -buildvcs=false -ldflags=-s \
	-o /out/gateway . && mkdir -p /out/lib && mkdir -m 0700 /out/lib/sealedchat

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 /out/lib /var/lib
COPY --from=build /out/gateway /gateway
USER 65532:65532
VOLUME /var/lib/sealedchat
EXPOSE 8443 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["/gateway"]
