# The zoo with its command line, on CPUs or, with the NVIDIA container toolkit, on GPUs:
#   docker build -t zoo .
#   docker run --rm zoo doctor
#   docker run --rm --gpus all --shm-size 8g -v /data:/data -v "$PWD":/work zoo fit --config configs/dialoguellm/meld_small.yaml --data.root /data/MELD.Raw
FROM python:3.11-slim
RUN useradd --create-home zoo && mkdir /work && chown zoo /work
COPY . /source
RUN pip install --no-cache-dir -c /source/constraints.txt '/source[gguf,serve,quantize]' && rm -r /source
USER zoo
WORKDIR /work
ENTRYPOINT ["zoo"]
CMD ["--help"]
