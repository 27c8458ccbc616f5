# Serving only: no torch, no onnx, no compiler. Both stages share a base, so that the virtual environment fits.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv --without-pip /opt/tidegate
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY src src
COPY protos protos
COPY serving serving
# Bytecode is compiled here: at run time the root file system may be read-only.
# What a server never loads is left out: tests of numpy, tools and the C library of onnxruntime (Python has its own copy).
RUN pip --python /opt/tidegate/bin/python install --no-cache-dir --disable-pip-version-check \
        --constraint requirements.lock '.[server,redis]' \
    && packages=$(echo /opt/tidegate/lib/python3*/site-packages) \
    && find "$packages" -name tests -type d -prune -exec rm -r {} + \
    && rm -r "$packages/onnxruntime/transformers" "$packages/onnxruntime/tools" "$packages/onnxruntime/quantization" \
        "$packages"/onnxruntime/capi/libonnxruntime.so.* \
    && mkdir /data

FROM ${BASE}
COPY --from=build /opt/tidegate /opt/tidegate
COPY --from=build --chown=65532:65532 /data /data
COPY models /models
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TIDEGATE_MODELS=/models TIDEGATE_DATA_DIR=/data TIDEGATE_HOST=0.0.0.0
# Where streams rest: the one place that is written to.
VOLUME /data
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /
EXPOSE 50051 9464
# Starting Python costs some hundred milliseconds of CPU: not more often than needed.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s CMD ["tidegate", "health", "--http"]
# One worker a core that the container is given; the first process is their supervisor, and needs no other init.
ENTRYPOINT ["tidegate"]
CMD ["serve"]
